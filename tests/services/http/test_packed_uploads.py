"""Compressed uploads and Parquet over HTTP: they become lines; bombs, damage and false heads are refused."""

import base64
import gzip
import hashlib
import io
import json
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitcask_services.corpora import packed
from tests.support.services.parquet_files import nested, parquet_file, wide
from tests.support.services.service_harness import jsonl

LINES = jsonl([{"text": f"line {number}", "custom_id": f"c{number}"} for number in range(5000)])


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def parquet(columns, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def send(server, body, **headers):
    return server.client.post("/v1/corpora", content=body, headers={"Content-Type": "application/jsonl", **headers})


def stored(server, answer) -> bytes:
    return server.service.storage.path(answer.json()["sha256"]).read_bytes()


def leftovers(server):
    folder = server.service.folders.corpora
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(LINES), {"Content-Encoding": "gzip"}),
        (gzip.compress(LINES), {"Content-Encoding": "GZIP"}),
        (gzip.compress(LINES), {"Content-Type": "application/gzip"}),
        (gzip.compress(LINES[:100]) + gzip.compress(LINES[100:]), {}),  # members in a row, as `cat a.gz b.gz` gives
        (zstd(LINES), {"Content-Encoding": "zstd"}),
        (zstd(LINES[:777]) + zstd(LINES[777:]), {}),
        (gzip.compress(zstd(LINES)), {"Content-Encoding": "gzip"}),  # a .zst file, encoded on its way
    ],
)
def test_compressed_bodies_are_the_corpus_inside(serve, body, headers):
    server = serve()
    answer = send(server, body, **headers)
    assert answer.status_code == 201, answer.text
    assert stored(server, answer) == LINES
    assert (answer.json()["bytes"], answer.json()["lines"]) == (len(LINES), 5000)
    plain = send(server, LINES)
    assert (plain.status_code, plain.json()["id"]) == (200, answer.json()["id"])
    assert leftovers(server) == [f"{answer.json()['sha256']}.jsonl"]


def test_parquet_rows_are_lines(serve):
    server = serve()
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "name": "x"}]
    columns = {
        "messages": [conversation, conversation[:1]],
        "custom_id": ["a", None],
        "score": [0.5, None],
        "picture": [b"\x00", b"\x01"],
        "kind": pa.array(["k", "l"]).dictionary_encode(),
    }
    answer = send(server, parquet(columns), **{"Content-Type": "application/vnd.apache.parquet"})
    assert answer.status_code == 201, answer.text
    assert [json.loads(line) for line in stored(server, answer).splitlines()] == [
        {"messages": conversation, "custom_id": "a", "score": 0.5, "kind": "k"},
        {"messages": conversation[:1], "kind": "l"},
    ]


def test_parquet_of_many_row_groups_and_pages_keeps_every_row(serve):
    server = serve()
    texts = [f"row {number} é" for number in range(20_000)]
    ids = [[number, number + 1] for number in range(20_000)]
    body = parquet({"text": texts}, row_group_size=999, data_page_size=1000)
    rows = stored(server, send(server, body)).splitlines()
    assert [json.loads(row) for row in rows] == [{"text": text} for text in texts]
    rows = stored(server, send(server, gzip.compress(parquet({"input_ids": ids}, row_group_size=7000)))).splitlines()
    assert [json.loads(row) for row in rows] == [{"input_ids": row} for row in ids]


def test_a_parquet_corpus_is_captured(serve):
    server = serve()
    corpus = send(server, parquet({"text": ["one", "two", ""], "custom_id": ["a", "b", "c"]})).json()
    job = server.finish(server.submit(corpus)["id"])
    assert (job["status"], job["documents"]["captured"]) == ("completed", 2)
    assert [(error["custom_id"], error["code"]) for error in server.errors(job["id"])] == [("c", "empty")]


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (LINES, {"Content-Encoding": "gzip"}, 400, "wrong_encoding"),
        (gzip.compress(LINES), {"Content-Encoding": "zstd"}, 400, "wrong_encoding"),
        (gzip.compress(LINES), {"Content-Encoding": "br"}, 415, "unsupported_encoding"),
        (gzip.compress(LINES), {"Content-Encoding": "gzip, gzip"}, 415, "unsupported_encoding"),
        (gzip.compress(LINES)[:-9], {}, 400, "damaged_archive"),
        (zstd(LINES)[:-3], {}, 400, "damaged_archive"),
        (gzip.compress(LINES) + b"rubbish", {}, 400, "damaged_archive"),
        (flipped(gzip.compress(LINES), -6), {}, 400, "damaged_archive"),  # its checksum
        (gzip.compress(b""), {}, 400, "empty_body"),
        (zstd(b""), {}, 400, "empty_body"),
        (gzip.compress(b"%PDF-1.7 ..."), {}, 415, "not_json_lines"),
        (gzip.compress(gzip.compress(gzip.compress(LINES))), {}, 415, "not_json_lines"),
        (b"PAR1" + b"rubbish" * 9 + b"PAR1", {}, 400, "bad_parquet"),
        (parquet({"text": ["a"] * 100})[:-20], {}, 400, "bad_parquet"),
        (parquet({"picture": [b"a"]}), {}, 400, "bad_parquet"),
        (parquet_file(nested(100_000)), {}, 400, "bad_parquet"),
        (gzip.compress(parquet_file(wide(50_000))), {}, 400, "bad_parquet"),
        (b"PARE" + parquet({"text": ["a"]})[4:-4] + b"PARE", {}, 400, "bad_parquet"),  # encrypted
        (parquet({"text": ["a"]})[:-8] + (1 << 27).to_bytes(4, "little") + b"PAR1", {}, 400, "bad_parquet"),
        (parquet({"text": pa.array([], pa.string())}), {}, 400, "empty_body"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_and_gone(serve, body, headers, status, code):
    server = serve()
    answer = send(server, body, **headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert leftovers(server) == []
    assert send(server, LINES).status_code == 201


def test_bombs_are_stopped_by_their_ratio(serve, monkeypatch):
    monkeypatch.setattr(packed, "FREE_BYTES", 3 << 20)
    server = serve()
    deflate = zlib.compressobj(wbits=31)
    bomb = b"".join(deflate.compress(b" " * (1 << 20)) for _ in range(64)) + deflate.flush()
    answer = send(server, bomb)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "unpacks_too_large")
    assert "a ratio above 250" in answer.json()["detail"]
    assert leftovers(server) == []
    small = send(server, gzip.compress(LINES + b" " * (2 << 20)))  # as good a ratio, and short
    assert small.status_code == 201


@pytest.mark.parametrize("body", [gzip.compress(LINES), zstd(LINES), parquet({"text": ["x" * 100] * 5000})])
def test_bombs_are_stopped_by_their_bytes(serve, body):
    server = serve(max_unpacked_bytes=100_000, max_body_bytes=100_000)
    answer = send(server, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "unpacks_too_large")
    assert "unpacks to more than 100000 bytes" in answer.json()["detail"]
    assert leftovers(server) == []


def digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


@pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest"])
def test_a_digest_of_what_is_sent_is_checked(serve, header):
    server, body = serve(), gzip.compress(LINES)
    good = send(server, body, **{header: digest(body), "Content-Encoding": "gzip"})
    assert good.status_code == 201
    assert send(server, LINES, **{header: f"sha-512=:AA==:, {digest(LINES)}"}).status_code == 200
    other = LINES[1:]
    wrong = send(server, other, **{header: digest(LINES)})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "digest_mismatch")
    assert wrong.json()["error"]["param"] == header
    assert len(leftovers(server)) == 1


def test_a_digest_in_two_header_lines_is_one_list(serve):
    """RFC 9110, 5.3: what a second line says is not passed over."""
    server, good = serve(), digest(LINES)
    for values, status in (("sha-512=:AA==:", good), 201), ((good, digest(b"")), 400), ((good, "nonsense"), 400):
        lines = [("Repr-Digest", value) for value in values]
        assert server.client.post("/v1/corpora", content=LINES, headers=lines).status_code == status, values
    twice = [("Content-Encoding", "gzip"), ("Content-Encoding", "zstd")]
    answer = server.client.post("/v1/corpora", content=gzip.compress(LINES), headers=twice)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/uploads/UPLOAD/parts"])
def test_a_digest_of_a_form_is_checked_too(serve, path):
    server = serve()
    announced = {"bytes": len(LINES), "filename": "x", "purpose": "batch"}
    path = path.replace("UPLOAD", server.client.post("/v1/uploads", json=announced).json()["id"])
    files = {"file" if path == "/v1/files" else "data": ("x.jsonl", LINES)}
    request = server.client.build_request("POST", path, files=files, data={"purpose": "batch"})
    body = request.read()
    for declared, status in (digest(body), 200), (digest(LINES), 400), ("sha-256=:!:", 400):
        headers = {"Content-Type": request.headers["content-type"], "Content-Digest": declared}
        assert server.client.post(path, content=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    "value",
    ["", "sha-256", "sha-256=abc", "sha-256=:!:", "sha-256=:AAA=:", "sha-512=:AA==:", f"{digest(b'')}, {digest(b'a')}"],
)
def test_a_digest_that_cannot_be_checked_is_refused(serve, value):
    answer = send(serve(), LINES, **{"Repr-Digest": value})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_digest")
    assert answer.headers["want-repr-digest"] == "sha-256=10"
