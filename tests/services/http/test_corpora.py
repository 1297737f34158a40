"""Uploads over HTTP: streamed, bounded, deduplicated, idempotent; what is refused leaves nothing behind."""

import errno
import hashlib
import logging
import socket
import threading
from pathlib import Path

import pytest

from logitcask_schemas.cask.storage import files
from logitcask_services.corpora.uploads import CorpusStorage, CorpusUpload
from tests.support.services.service_harness import wait_for

LINE = b'{"text": "hello"}\n'


def leftovers(tmp_path: Path) -> list[str]:
    return [entry.name for entry in (tmp_path / "state" / "corpora" / "incoming").iterdir()]


def test_upload_and_look_up(serve, tmp_path):
    server = serve()
    body = LINE * 200_000  # several blocks
    answer = server.client.post("/v1/corpora?name=mine.jsonl", content=body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 201
    corpus = answer.json()
    assert corpus["sha256"] == hashlib.sha256(body).hexdigest()
    assert (corpus["bytes"], corpus["lines"], corpus["name"]) == (len(body), 200_000, "mine.jsonl")
    assert corpus["deduplicated"] is False
    assert answer.headers["location"] == f"/v1/corpora/{corpus['id']}"
    assert server.client.get(answer.headers["location"]).json() == corpus | {"received_sha256": None}
    assert (tmp_path / "state" / "corpora" / f"{corpus['sha256']}.jsonl").read_bytes() == body
    again = server.client.post("/v1/corpora", content=body)
    assert again.status_code == 200
    assert again.json() == corpus | {"deduplicated": True}
    assert leftovers(tmp_path) == []


def test_curl_without_a_content_type(serve):
    """Curl calls every body a form. `--data-binary @file` sends the file; `-d @file` takes its line ends away."""
    server = serve()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    whole = server.client.post("/v1/corpora", content=LINE * 3, headers=form)
    assert (whole.status_code, whole.json()["lines"]) == (201, 3)
    stripped = server.client.post("/v1/corpora", content=(LINE * 3).replace(b"\n", b""), headers=form)
    assert (stripped.status_code, stripped.json()["error"]["code"]) == (400, "lines_lost")
    assert "--data-binary @file" in stripped.json()["detail"]
    for single in (LINE, LINE[:-1], b"no JSON", b"[" * 100_000):
        assert server.client.post("/v1/corpora", content=single, headers=form).status_code == 201


def test_content_is_looked_up_before_it_is_sent(serve, tmp_path):
    server = serve()
    digest = hashlib.sha256(LINE).hexdigest()
    assert server.client.get(f"/v1/corpora?sha256={digest}").json()["data"] == []
    corpus = server.upload(LINE) | {"received_sha256": None}
    server.upload(LINE * 2)
    assert server.client.get(f"/v1/corpora?sha256={digest}").json()["data"] == [corpus]
    for wrong in ("", "abc", digest.upper(), digest + "0"):
        assert server.client.get(f"/v1/corpora?sha256={wrong}").status_code == 422
    (tmp_path / "state" / "corpora" / f"{digest}.jsonl").unlink()  # a row is not enough: the content must be there
    assert server.client.get(f"/v1/corpora?sha256={digest}").json()["data"] == []
    assert server.upload(LINE)["id"] == corpus["id"]
    assert server.client.get(f"/v1/corpora?sha256={digest}").json()["data"] == [corpus]


@pytest.mark.parametrize("name", ["\x1b]0;pwned\x07", "a\x00b", "a\nb", "a\x7fb", "a\x9bb", "a\u2028b"])
def test_names_without_control_characters(serve, name):
    server = serve()
    refused = server.client.post("/v1/corpora", params={"name": name}, content=LINE)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "name")
    kept = server.client.post("/v1/corpora", params={"name": "Über 日本語　🙂"}, content=LINE)
    assert kept.json()["name"] == "Über 日本語　🙂"


def test_chunked_bodies(serve):
    server = serve()
    answer = server.client.post("/v1/corpora", content=(LINE for _ in range(3)))
    assert (answer.status_code, answer.json()["lines"]) == (201, 3)


def test_lists_page_by_page(serve):
    server = serve()
    made = [server.upload([{"text": str(number)}])["id"] for number in range(5)]
    first = server.client.get("/v1/corpora?limit=2").json()
    assert [corpus["id"] for corpus in first["data"]] == made[:-3:-1]
    assert first["has_more"] is True
    rest = server.client.get(f"/v1/corpora?limit=10&after={first['data'][-1]['id']}").json()
    assert [corpus["id"] for corpus in rest["data"]] == made[2::-1]
    assert rest["has_more"] is False
    assert server.client.get("/v1/corpora?after=nothing").status_code == 404
    assert server.client.get("/v1/corpora?limit=0").status_code == 422


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "application/x-tar"}, 415, "unsupported_media_type"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        ({"Content-Encoding": "br"}, 415, "unsupported_encoding"),
        ({"Idempotency-Key": "has spaces"}, 422, "invalid_request"),
        ({"Idempotency-Key": "x" * 256}, 422, "invalid_request"),
    ],
)
def test_refused_headers(serve, headers, status, code):
    answer = serve().client.post("/v1/corpora", content=LINE, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


def test_an_empty_body(serve, tmp_path):
    answer = serve().client.post("/v1/corpora", content=b"")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "empty_body")
    assert leftovers(tmp_path) == []


def test_too_large(serve, tmp_path):
    server = serve(max_body_bytes=100)
    declared = server.client.post("/v1/corpora", content=LINE * 10)
    streamed = server.client.post("/v1/corpora", content=(LINE for _ in range(10)))
    for answer in (declared, streamed):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert "larger than 100 bytes" in answer.json()["detail"]
    assert leftovers(tmp_path) == []
    assert server.client.post("/v1/corpora", content=LINE * 5).status_code == 201


def test_a_disk_that_fills_up(serve, tmp_path, monkeypatch):
    server = serve()

    def full(self, block):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CorpusUpload, "write", full)
    answer = server.client.post("/v1/corpora", content=LINE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_storage")
    assert "Free space on the server and try again" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "60"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_used(serve, monkeypatch, code):
    """Faults of the machine that pass are 503, not 500: the client may try again."""
    server = serve()

    def broken(self):
        raise OSError(code, "broken, as scripted")

    monkeypatch.setattr(CorpusStorage, "receive", broken)
    answer = server.client.post("/v1/corpora", content=LINE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
    assert "broken, as scripted" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "10"


def test_a_corpus_that_would_not_fit(serve, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda folder: 1000)
    server = serve(disk_floor_bytes=990)
    answer = server.client.post("/v1/corpora", content=LINE)
    assert answer.status_code == 507
    assert "would go below the floor of 990" in answer.json()["detail"]


def test_idempotency(serve):
    server = serve()

    def send(body, key):
        return server.client.post("/v1/corpora", content=body, headers={"Idempotency-Key": key})

    first = send(LINE, "k1")
    assert first.status_code == 201
    assert send(LINE, "k1").json()["id"] == first.json()["id"]
    other = send(LINE + LINE, "k1")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert other.json()["error"]["param"] == "Idempotency-Key"
    assert send(LINE + LINE, "k2").status_code == 201


def test_a_key_in_flight(serve, tmp_path):
    server = serve()
    go_on = threading.Event()

    def slow():
        yield LINE
        go_on.wait(30)
        yield LINE

    answers = []
    headers = {"Idempotency-Key": "k"}
    thread = threading.Thread(
        target=lambda: answers.append(server.client.post("/v1/corpora", content=slow(), headers=headers))
    )
    thread.start()
    # What the client has sent says nothing of what the server has read; the key is held once a file is there.
    wait_for(lambda: leftovers(tmp_path))
    meanwhile = server.client.post("/v1/corpora", content=LINE, headers=headers)
    go_on.set()
    thread.join()
    assert (meanwhile.status_code, meanwhile.json()["error"]["code"]) == (409, "request_in_flight")
    assert answers[0].status_code == 201


@pytest.mark.parametrize("path", ["/v1/corpora", "/v1/extractions"])
def test_a_client_that_goes_away_leaves_nothing(serve, tmp_path, caplog, path):
    """No file, no traceback: one line, and a status of its own in the metrics."""
    caplog.set_level(logging.INFO)
    server = serve()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    head = head.replace("application/json", "application/jsonl") if path == "/v1/corpora" else head
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + LINE)
        wait_for(lambda: server._server.server_state.tasks)
        if path == "/v1/corpora":
            wait_for(lambda: leftovers(tmp_path))
    label = f'requests_total{{method="POST",route="{path}",status="499"}} 1.0'
    wait_for(lambda: label in server.client.get("/metrics").text)
    assert leftovers(tmp_path) == []
    assert server.client.get("/v1/corpora").json()["data"] == []
    assert [record.getMessage() for record in caplog.records if "client" in record.getMessage()] == [
        f"the client of POST {path} went away before its request was complete"
    ]
    assert [record for record in caplog.records if record.exc_info] == []
