"""`logitcask submit` and `logitcask jobs` against a real server: output, exit codes, broken connections."""

import io
import json
import threading
from typing import Any

import httpx2
import pytest
from rich.console import Console

from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.connection import ServiceError, ServiceUnreachableError
from logitcask_schemas.api.objects import Corpus, Event, Extraction
from logitcask_schemas.cask import CaskWriter
from logitcask_services.cli.jobs import describe
from tests.support.services.fake_teacher import POISON
from tests.support.services.service_harness import wait_for


def test_submit_and_wait(serve, run, corpus):
    server = serve()
    code, out, err = run(server, "submit", corpus, "--cask", "one", "--wait")
    assert code == 0
    assert out == ""
    (job,) = server.client.get("/v1/extractions").json()["data"]
    assert f"{job['id']}: validating" in err.partition("completed;")[0], "at once, for whoever reads a pipe"
    assert "completed; cask one: 40 of 42 documents" in err
    assert "not in the cask: 2 lines or documents" in err
    assert "line 11: not_json: the line is not JSON" in err
    assert "line 42: empty: `text` is empty" in err
    listed = run(server, "jobs", "ls")[1]
    assert "40/42 documents, 2 bad lines" in listed
    assert "failed" not in listed
    again = run(server, "submit", corpus, "--cask", "one", "--wait")[2]
    assert "40 of 42 documents (40 were in it before), 0 tokens captured" in again


def test_json_is_alone_on_stdout(serve, run, corpus):
    code, out, _ = run(serve(), "submit", corpus, "--cask", "one", "--wait", "--json", "--mode", "topk", "--k", "4")
    assert code == 0
    job = json.loads(out)
    assert (job["status"], job["capture"]["mode"], job["capture"]["k"]) == ("completed", "topk", 4)


def test_held_out_text_is_captured_with_what_unbiased_figures_need(serve, run, corpus):
    code, out, _ = run(serve(), "submit", corpus, "--cask", "held", "--held-out", "--json")
    assert code == 0
    assert json.loads(out)["capture"]["tail_logprobs"] is True


def test_submit_without_waiting_prints_the_id(serve, run, corpus):
    server = serve()
    options = ["--metadata", "team=a", "--pin", "5", "--pin", "6", "--temperature", "2.0", "--overflow", "split"]
    code, out, _ = run(server, "submit", corpus, "--cask", "one", *options)
    assert code == 0
    job = server.finish(out.strip())
    assert job["metadata"] == {"team": "a"}
    assert job["capture"]["pinned_ids"] == [5, 6]
    assert job["capture"]["temperatures"] == [2.0]
    assert job["overflow"] == "split"


def test_a_failed_extraction_is_exit_code_3(serve, run, corpus):
    code, _, err = run(serve(), "submit", corpus, "--cask", "one", "--wait", "--on-error", "fail")
    assert code == 3
    assert "failed" in err
    assert "error: 2 of 42 lines are bad" in err


def test_many_failures_are_cut_short(serve, run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "sound"}\n' + b"x\n" * 30)
    code, _, err = run(serve(), "submit", path, "--cask", "one", "--wait")
    assert code == 0
    assert "not in the cask: 30 lines or documents" in err
    assert "line 21:" in err
    assert "line 22:" not in err
    assert "logitcask jobs errors extraction-" in err


def test_a_corpus_that_gives_nothing_is_a_failure(serve, run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"x\n" * 3)
    code, _, err = run(serve(), "submit", path, "--cask", "one", "--wait")
    assert code == 3
    assert "none of the 3 lines gives a document" in err


def test_refusals(serve, run, corpus, tmp_path):
    server = serve()
    code, _, err = run(server, "submit", corpus, "--cask", "../x")
    assert (code, "expected a name, not a path" in err) == (2, True)
    assert server.client.get("/v1/corpora").json()["data"] == []
    code, _, err = run(server, "submit", tmp_path / "missing.jsonl", "--cask", "x")
    assert (code, "is not a file" in err) == (2, True)
    code, _, err = run(server, "submit", corpus, "--cask", "x", "--metadata", "nothing")
    assert (code, "expected key=value" in err) == (2, True)
    code, _, err = run(None, "submit", corpus, "--cask", "x")
    assert code == 1
    assert "no service answers at http://127.0.0.1:9" in err
    assert "logitcask serve" in err


@pytest.mark.parametrize("name", ["", ".", "../../x", "a b", "\udcff", "x\x1b[31m"])
def test_what_is_no_extractions_id_is_told_before_it_is_asked_for(serve, run, name):
    server = serve()
    for command in ("show", "watch", "cancel", "resume", "errors"):
        code, out, err = run(server, "jobs", command, "--", name)
        assert (code, out) == (1, "")
        assert f"{name!a} is no extraction's id; `logitcask jobs ls` lists those there are" in err


def test_keys(serve, run, corpus, tmp_path, monkeypatch):
    server = serve(api_key="the-real-key")
    code, _, err = run(server, "submit", corpus, "--cask", "one")
    assert (code, "the API key is missing" in err) == (1, True)
    assert "--api-key-file or LOGITCASK_API_KEY" in err
    keys = tmp_path / "key"
    keys.write_text("the-real-key\n")
    assert run(server, "submit", corpus, "--cask", "one", "--wait", "--api-key-file", keys)[0] == 0
    monkeypatch.setenv("LOGITCASK_API_KEY", "the-real-key")
    assert run(server, "jobs", "ls")[0] == 0
    monkeypatch.setenv("LOGITCASK_API_KEY", "another-key")
    code, _, err = run(server, "jobs", "ls")
    assert (code, "is not one of the server's keys" in err) == (1, True)


def test_jobs(serve, run, documents):
    server = serve()
    documents[3]["input_ids"][1:1] = [POISON]
    job = server.finish(server.submit(server.upload(documents))["id"])
    code, out, _ = run(server, "jobs", "ls")
    assert code == 0
    assert job["id"] in out
    assert "39/40 documents, 1 failed" in out
    assert [entry["id"] for entry in json.loads(run(server, "jobs", "ls", "--json")[1])["extractions"]] == [job["id"]]
    assert json.loads(run(server, "jobs", "ls", "--json", "--status", "failed")[1])["extractions"] == []
    assert json.loads(run(server, "jobs", "show", job["id"], "--json")[1]) == job
    code, out, _ = run(server, "jobs", "show", job["id"])
    tokens, shards = job["usage"]["tokens_total"], server.client.get(f"/v1/extractions/{job['id']}/manifest").json()
    size = sum(shard["bytes"] for shard in shards["shards"])
    assert code == 0
    assert "capture_failed" in out
    assert f"{job['id']}: completed; cask cask: 39 of 40 documents" in out
    assert f"tokens: {tokens:,} of {tokens:,} done" in out
    assert "documents: 40, of them 39 captured, 0 in the cask before, 1 failed" in out
    assert f"files: {len(shards['shards'])} shard" in out
    assert f" of {size:,} bytes, from {job['corpus_id']}" in out
    assert "spec: mode threshold, tau 0.028, head_max 64, tail_max 255, seed 0, logprob_codec f16, overflow" in out
    assert "{" not in out
    code, out, _ = run(server, "jobs", "errors", job["id"])
    assert json.loads(out)["custom_id"] == "d3"
    assert len(json.loads(run(server, "jobs", "errors", job["id"], "--json")[1])["errors"]) == 1
    assert run(server, "jobs", "watch", job["id"])[0] == 0
    code, _, err = run(server, "jobs", "cancel", job["id"])
    assert (code, "is completed and cannot become cancelling" in err) == (1, True)
    code, _, err = run(server, "jobs", "ls", "--status", "done")
    assert (code, "'done' is not one of 'validating', 'queued'" in err) == (2, True)
    code, _, err = run(server, "jobs", "show", "nothing")
    assert (code, "there is no extraction 'nothing'" in err) == (1, True)


def test_cancel_and_watch(serve, run, documents):
    server = serve(fake={"seconds_per_document": 0.2, "in_flight": 1})
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    code, out, _ = run(server, "jobs", "cancel", job["id"])
    assert (code, out.strip()) == (0, f"{job['id']}: cancelling")
    code, _, err = run(server, "jobs", "watch", job["id"])
    assert code == 3
    assert "cancelled" in err


def test_a_resumed_extraction_is_followed_to_its_new_end(serve, run, documents, monkeypatch):
    """Its log holds the earlier end, which is none by now."""

    def faulty(self, identity):
        raise KeyError("as scripted")

    monkeypatch.setattr(CaskWriter, "has", faulty)
    server = serve(fake={"seconds_per_document": 0.02})
    job = server.finish(server.submit(server.upload(documents))["id"])
    assert job["status"] == "failed"
    monkeypatch.undo()
    code, _, err = run(server, "jobs", "resume", job["id"], "--wait")
    assert (code, "completed" in err) == (0, True)
    assert server.get(job["id"])["status"] == "completed"
    code, _, err = run(server, "jobs", "watch", job["id"])
    assert code == 0


def test_what_is_shown_of_an_extraction_that_waits(serve, run, documents):
    server = serve(fake={"seconds_per_document": 0.05, "in_flight": 1})
    job = server.submit(server.upload(documents))
    row = server.get(job["id"])
    row |= {"status": "in_progress", "waiting": {"code": "disk", "message": "the disk is full"}}
    out = io.StringIO()
    describe(Extraction.model_validate(row), [], Console(file=out, width=200))
    shown = out.getvalue()
    assert "waiting: the disk is full" in shown
    assert "files: 0 shards of 0 bytes" in shown
    run(server, "jobs", "cancel", job["id"])


def test_a_cancelled_extraction_says_what_it_left(serve, run, documents):
    server = serve(fake={"seconds_per_document": 1.0, "in_flight": 1})
    job = server.submit(server.upload(documents[:3]), cask="one")
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    run(server, "jobs", "cancel", job["id"])
    code, _, err = run(server, "jobs", "watch", job["id"])
    assert (code, "cancelled; cask one: 0 of 3 documents, 0 tokens captured" in err) == (3, True)
    assert "nothing of it is in the cask; where it was new it is there now, empty, for this teacher and spec" in err
    cask = server.service.folders.cask("one")
    assert "one   fake-teacher       0          0" in run(server, "cask", "ls", cask.parent)[1]
    code, _, err = run(server, "cask", "show", cask)
    assert (code, "holds no document yet" in err) == (1, True)


def test_ctrl_c_leaves_the_extraction_running(serve, run, corpus, monkeypatch):
    server = serve()

    def interrupted(self, extraction_id):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(ServiceClient, "follow", interrupted)
    code, _, err = run(server, "submit", corpus, "--cask", "one", "--wait")
    assert code == 130
    assert "the extraction goes on; follow it with: logitcask jobs watch extraction-" in err
    (job,) = server.client.get("/v1/extractions").json()["data"]
    assert server.finish(job["id"])["status"] == "completed"


class BreakingTransport(httpx2.HTTPTransport):
    """Cuts every event stream after a few events, and refuses every other connection."""

    def __init__(self):
        super().__init__()
        self.streams = 0
        self.last_ids = []

    def handle_request(self, request):
        if "event-stream" not in request.headers.get("accept", ""):
            return super().handle_request(request)
        self.streams += 1
        self.last_ids.append(request.headers.get("last-event-id"))
        if self.streams % 2 == 0:
            raise httpx2.ConnectError("refused, as scripted")
        answer = super().handle_request(request)
        original: Any = answer.stream

        class Cut(httpx2.SyncByteStream):
            def __iter__(self):
                for number, block in enumerate(original):
                    if number == 3:
                        raise httpx2.ReadError("cut, as scripted")
                    yield block

            def close(self):
                original.close()

        answer.stream = Cut()
        return answer


def test_following_survives_broken_connections(serve, documents):
    server = serve(fake={"seconds_per_document": 0.01})
    job = server.submit(server.upload(documents))
    transport = BreakingTransport()
    with ServiceClient(server.url, transport=transport) as client:
        seen = [event.id for event in client.follow(job["id"]) if isinstance(event, Event)]
    everything = server.client.get(f"/v1/extractions/{job['id']}/events?limit=1000").json()["data"]
    assert seen == [event["id"] for event in everything]
    assert transport.streams > 2
    assert transport.last_ids[0] is None
    assert None not in transport.last_ids[2:]


def test_following_gives_up_after_its_patience():
    words = r"has not answered for 0\.3 s .*logitcask jobs watch x"
    client = ServiceClient("http://127.0.0.1:9", patience_seconds=0.3)
    with client, pytest.raises(ServiceUnreachableError, match=words):
        list(client.follow("x"))


def test_a_server_that_is_not_ours():
    answers = [
        httpx2.Response(500, text="<html>nginx</html>"),
        httpx2.Response(200, text="<html>hello</html>"),
        httpx2.Response(200, json=[]),
        httpx2.Response(200, json={"detail": "another API"}),
        httpx2.Response(404, json={"detail": "Not Found"}),
        httpx2.Response(301, headers={"Location": "https://x/"}),
    ]
    for answer in answers:
        client = ServiceClient("http://x", transport=httpx2.MockTransport(lambda request, answer=answer: answer))
        words = f"what answers at http://x is no logitcask service .status {answer.status_code}"
        with client, pytest.raises(ServiceError, match=words) as caught:
            client.extraction("x")
    assert "it points to https://x/" in str(caught.value)


def test_a_service_of_another_version():
    """Members that only a newer service has are kept; an answer that cannot be read is told as what it is."""
    manifest = {"extraction_id": "x", "cask": "c", "partial": False, "teacher": None, "capture": {}, "shards": []}
    answer = {"object": "extraction.manifest", **manifest, "sealed": True}
    with ServiceClient(
        "http://x", transport=httpx2.MockTransport(lambda _: httpx2.Response(200, json=answer))
    ) as client:
        assert client.manifest("x").model_dump()["sealed"] is True
        with pytest.raises(ServiceError, match=r"http://x is of another version .* GET /v1/extractions/x .*id: Field"):
            client.extraction("x")


@pytest.mark.parametrize(
    ("capture", "tau"), [({"tau": 1e-9}, 1e-9), ({"tau": 0.1, "of_the_future": [1]}, 0.1)], ids=["older", "newer"]
)
def test_specs_of_other_versions_are_read(serve, documents, capture, tau):
    server = serve()
    job = server.finish(server.submit(server.upload(documents))["id"])
    job["capture"] |= capture
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=job))
    with ServiceClient("http://x", transport=transport) as client:
        assert client.extraction(job["id"]).capture.tau == tau


def test_a_damaged_upload_is_noticed(tmp_path):
    def handler(request):
        request.read()
        corpus = Corpus(id="corpus-1", name=None, bytes=2, lines=1, sha256="0" * 64, created_at=0)
        return httpx2.Response(201, json=corpus.model_dump())

    path = tmp_path / "corpus"
    path.write_bytes(b"x\n")
    client = ServiceClient("http://x", transport=httpx2.MockTransport(handler))
    with client, pytest.raises(ServiceError, match="arrived damaged"):
        client.upload(path)


def test_a_lost_answer_does_not_start_it_twice(serve, corpus):
    server = serve()

    class LosesFirst(httpx2.HTTPTransport):
        lost = False

        def handle_request(self, request):
            answer = super().handle_request(request)
            if request.url.path == "/v1/extractions" and not self.lost:
                self.lost = True
                answer.read()
                raise httpx2.ReadError("the answer was lost, as scripted")
            return answer

    with ServiceClient(server.url, transport=LosesFirst()) as client:
        uploaded = client.upload(corpus)
        job = client.submit({"corpus_id": uploaded.id, "cask": "c"})
    (only,) = server.client.get("/v1/extractions").json()["data"]
    assert only["id"] == job.id


def test_two_clients_follow_one_extraction(serve, documents):
    server = serve(fake={"seconds_per_document": 0.005})
    job = server.submit(server.upload(documents))
    seen = [[], []]

    def follow(into):
        with ServiceClient(server.url) as client:
            into.extend(event.id for event in client.follow(job["id"]) if isinstance(event, Event))

    threads = [threading.Thread(target=follow, args=(into,)) for into in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0] == seen[1]
    assert seen[0]
