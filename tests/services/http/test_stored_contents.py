"""Files that the service has stored, as answers: ranges of each kind, and contents that are gone."""

import json

import pytest

from tests.support.services.service_harness import wait_for

CHAT = {"custom_id": "a", "messages": [{"role": "user", "content": "What is up?"}]}


@pytest.fixture
def stored(start):
    """A server, and the paths of a corpus' content, of a batch's output and of an extraction's documents."""
    server = start()
    corpus = server.upload([CHAT])["id"]
    asked = {"input_file_id": corpus, "endpoint": "/v1/extractions", "metadata": {"cask": "asked"}}
    batch = server.client.post("/v1/batches", json=asked).json()["id"]
    wait_for(lambda: server.client.get(f"/v1/batches/{batch}").json()["status"] == "completed")
    output = server.client.get(f"/v1/batches/{batch}").json()["output_file_id"]
    documents = f"/v1/extractions/{batch.removeprefix('batch_')}/documents"
    return server, [f"/v1/files/{corpus}/content", f"/v1/files/{output}/content", documents]


def test_ranges_of_every_file(stored):
    """What cannot be understood is all of the file; what begins behind its end is a problem as all are."""
    server, paths = stored
    for path in paths:
        whole = server.client.get(path)
        assert json.loads(whole.text)["custom_id"] == "a"
        part = server.client.get(path, headers={"Range": "bytes=3-6", "If-Range": whole.headers["etag"]})
        assert (part.status_code, part.content) == (206, whole.content[3:7])
        other = server.client.get(path, headers={"Range": "bytes=3-6", "If-Range": '"another"'})
        assert (other.status_code, other.content) == (200, whole.content)
        for nonsense in ("bytes=9-3", "bytes=x-", "lines=1-2", "bytes=-0", "bytes=0-1,4-5", "bytes=" + "9" * 30 + "-"):
            for condition in {}, {"If-Range": whole.headers["etag"]}:
                answer = server.client.get(path, headers={"Range": nonsense, **condition})
                assert (answer.status_code, answer.content) == (200, whole.content), nonsense
        behind = server.client.get(path, headers={"Range": f"bytes={len(whole.content)}-"})
        assert (behind.status_code, behind.json()["error"]["code"]) == (416, "range_not_satisfiable")
        assert behind.headers["content-range"] == f"bytes */{len(whole.content)}"


def test_a_content_that_is_gone_is_told_wherever_it_is_asked_for(stored):
    """404, and what to do; it is no disk that would work again by itself."""
    server, _ = stored
    corpus = server.upload([CHAT, CHAT])
    server.service.storage.path(corpus["sha256"]).unlink()
    batch = {"input_file_id": corpus["id"], "endpoint": "/v1/chat/completions"}
    generation = {"corpus_id": corpus["id"], "recipe": "conversation"}
    answers = {
        "content": server.client.get(f"/v1/files/{corpus['id']}/content"),
        "rows": server.client.get(f"/v1/corpora/{corpus['id']}/rows"),
        "statistics": server.client.get(f"/v1/corpora/{corpus['id']}/statistics"),
        "batch": server.client.post("/v1/batches", json=batch),
        "generation": server.client.post("/v1/generations", json=generation),
        "page": server.client.get(f"/ui/api/corpora/{corpus['id']}/rows"),
    }
    for name, answer in answers.items():
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "content_gone"), (name, answer.text)
        assert "upload it again" in answer.json()["detail"]
    assert server.upload([CHAT, CHAT])["id"] == corpus["id"]
    assert server.client.post("/v1/batches", json=batch).status_code == 200
