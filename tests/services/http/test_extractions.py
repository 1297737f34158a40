"""Extractions over HTTP: what may be asked, what is answered, and what cannot be done to the server by asking."""

import threading

import pytest

from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.cask import Cask
from logitcask_services.http.access import MAX_JSON_BYTES
from tests.support.services.fake_teacher import fake_teacher


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def corpus(server):
    return server.upload([{"text": "hello"}])


@pytest.fixture(scope="module")
def idle(serve_all):
    """A server for requests that are refused: nobody gives it work."""
    return serve_all()


@pytest.fixture(scope="module")
def idle_corpus(idle):
    return idle.upload([{"text": "hello"}])


def post(server, corpus, **fields):
    return server.client.post("/v1/extractions", json={"corpus_id": corpus["id"], "cask": "c"} | fields)


def test_the_answer(server, corpus):
    answer = post(server, corpus, metadata={"team": "a"}, capture={"mode": "topk", "k": 5}, max_length=10)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/extractions/{job['id']}"
    assert answer.headers["retry-after"] == "1"
    assert job["object"] == "extraction"
    assert job["metadata"] == {"team": "a"}
    assert (job["capture"]["mode"], job["capture"]["k"]) == ("topk", 5)
    done = server.finish(job["id"])
    for moment in ("created_at", "queued_at", "in_progress_at", "finalizing_at", "completed_at"):
        assert isinstance(done[moment], int)
    assert done["failed_at"] is None
    assert done["teacher"]["model"] == "fake-teacher"


@pytest.mark.parametrize("carrier", ["arrow", "zarr", "parquet"])
def test_the_carrier_of_the_shards(server, corpus, carrier, tmp_path):
    job = server.finish(post(server, corpus, cask=carrier, carrier=carrier).json()["id"])
    assert job["carrier"] == carrier
    cask = Cask.open(tmp_path / "casks" / carrier)
    assert {entry.carrier for entry in cask.entries} == {carrier}
    assert len(cask) == 1


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"cask": ""}, "cask", "match"),
        ({"overflow": "crop"}, "overflow", "truncate"),
        ({"carrier": "csv"}, "carrier", "zarr"),
        ({"on_error": "ignore"}, "on_error", "skip"),
        ({"max_length": 3}, "max_length", "greater than or equal to 4"),
        ({"max_length": 2**31}, "max_length", "less than or equal to 2147483647"),
        ({"max_length": 2**63}, "max_length", "less than or equal to 2147483647"),
        ({"max_length": 65}, "max_length", "more than the teacher's context of 64 tokens"),
        ({"capture": {"mode": "guess"}}, "capture.mode", "threshold"),
        ({"capture": {"tau": 0}}, "capture.tau", "greater than or equal to 0.000001"),
        ({"capture": {"pinned_ids": [1000]}}, "capture.pinned_ids", "outside the teacher's vocabulary of 1000"),
        ({"capture": {"head_max": 254, "pinned_ids": [1, 2, 3]}}, "capture", "pin fewer ids"),
        ({"surprise": 1}, "surprise", "Extra inputs"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "at most 16"),
        ({"metadata": {"k": 1}}, "metadata.k", "string"),
    ],
)
def test_refused_fields(idle, idle_corpus, fields, param, words):
    answer = post(idle, idle_corpus, **fields)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["error"]["param"] == param
    assert words in body["detail"]
    assert (body["status"], body["instance"]) == (422, "/v1/extractions")
    assert body["type"].startswith("urn:logitcask:problem:")


@pytest.mark.parametrize(
    "name",
    ["..", ".", "../x", "/etc", "a/b", "a\\b", "a\x00b", ".hidden", "-x", "a b", "a" * 129, "ä", "x\n", "%2e%2e"],
)
def test_names_that_could_leave_the_cask_root(idle, idle_corpus, name):
    answer = post(idle, idle_corpus, cask=name)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "cask"
    assert not list(idle.service.settings.data_dir.parent.rglob("cask.json"))


def test_a_cask_that_is_a_link_out_of_the_root(server, corpus, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "casks" / "c").symlink_to(tmp_path / "outside")
    answer = post(server, corpus)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_cask_name")
    assert "leads out of the cask root" in answer.json()["detail"]
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("path", ["..%2f..%2fetc%2fpasswd", "%00", "x" * 200, "extraction-1", "'; DROP TABLE corpora"])
@pytest.mark.parametrize("kind", ["corpora/{}", "extractions/{}", "extractions/{}/events", "extractions/{}/errors"])
def test_ids_that_do_not_exist(idle, path, kind):
    answer = idle.client.get("/v1/" + kind.format(path))
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_a_plan_is_checked_without_a_corpus(server, corpus):
    """What would be refused after the upload is refused before it, with the same words."""

    def check(**fields):
        return server.client.post("/v1/extractions/check", json={"cask": "c"} | fields)

    expected = {"object": "extraction.check", "cask": "c", "teacher": "fake-teacher"}
    assert check().json() == expected | {"cask_exists": False, "max_length": 64}
    assert check(max_length=10).json() == expected | {"cask_exists": False, "max_length": 10}
    for fields in (
        {"cask": "../x"},
        {"max_length": 65},
        {"carrier": "csv"},
        {"capture": {"tau": 2}},
        {"capture": {"pinned_ids": [1000]}},
        {"metadata": {"k": 1}},
        {"surprise": 1},
    ):
        refused, late = check(**fields), post(server, corpus, **fields)
        assert refused.status_code == late.status_code == 422
        assert refused.json()["detail"] == late.json()["detail"]
    server.finish(post(server, corpus, capture={"seed": 5}).json()["id"])
    assert check(capture={"seed": 5}).json()["cask_exists"] is True
    mismatch = check()
    assert (mismatch.status_code, mismatch.json()["error"]["code"]) == (409, "cask_mismatch")
    assert len(server.client.get("/v1/extractions").json()["data"]) == 1  # it starts nothing


def test_a_plan_is_checked_while_the_teacher_loads(serve):
    """The spec of a cask that exists needs no teacher to be compared with."""
    ready = threading.Event()
    first = serve()
    first.finish(first.submit(first.upload([{"text": "hello"}]), capture={"seed": 5})["id"])
    first.stop()

    def load():
        ready.wait(30)
        return fake_teacher()

    server = serve(load=load)
    plan = {"cask": "cask", "max_length": 2**31 - 1, "capture": {"seed": 5}}
    answer = server.client.post("/v1/extractions/check", json=plan).json()
    assert (answer["cask_exists"], answer["teacher"], answer["max_length"]) == (True, None, None)
    mismatch = server.client.post("/v1/extractions/check", json=plan | {"capture": {}})
    assert (mismatch.status_code, mismatch.json()["error"]["code"]) == (409, "cask_mismatch")
    ready.set()


def test_an_unknown_corpus(idle):
    answer = idle.client.post("/v1/extractions", json={"corpus_id": "corpus-none", "cask": "c"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "corpus_id")


@pytest.mark.parametrize("name", ["a" * 300, "%00", "..", "%ff"])
def test_ids_that_no_file_could_have_are_unknown(idle, name):
    answers = [idle.client.post(f"/v1/extractions/x{name}/{verb}") for verb in ("resume", "cancel")]
    assert [(each.status_code, each.json()["error"]["code"]) for each in answers] == [(404, "not_found")] * 2


def test_bodies_that_are_no_requests(idle):
    for body in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 10_000):
        answer = idle.client.post("/v1/extractions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), (body[:10], answer.status_code)
        assert answer.json()["error"]["code"] in ("invalid_request", "invalid_body")
    large = idle.client.post("/v1/extractions", content=b" " * (MAX_JSON_BYTES + 1))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")


def test_idempotency(server, corpus):
    def send(key, **fields):
        body = {"corpus_id": corpus["id"], "cask": "c"} | fields
        return server.client.post("/v1/extractions", json=body, headers={"Idempotency-Key": key})

    first, again = send("k"), send("k", overflow="truncate")  # the default, so the same request
    assert first.status_code == again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other = send("k", overflow="skip")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert first.json()["id"] in other.json()["detail"]
    assert len(server.client.get("/v1/extractions").json()["data"]) == 1


def test_lists(server, corpus):
    made = [post(server, corpus, cask=f"c{number}").json()["id"] for number in range(3)]
    for extraction in made:
        server.finish(extraction)
    page = server.client.get("/v1/extractions?status=completed&limit=2").json()
    assert [job["id"] for job in page["data"]] == made[:0:-1]
    assert page["has_more"] is True
    assert server.client.get("/v1/extractions?status=failed").json()["data"] == []
    assert server.client.get("/v1/extractions?status=strange").status_code == 422


def test_operations(server):
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/health/ready").json() == {
        "status": "ready",
        "reasons": [],
        "waiting": [],
        "paused": False,
    }
    assert server.client.get("/version").json().keys() == {"version"}
    (model,) = server.client.get("/v1/models").json()["data"]
    with ServiceClient(server.url) as client:
        assert [own.model_dump(mode="json") for own in client.models().data] == [model]
    assert (model["id"], model["max_model_len"], model["status"]) == ("fake-teacher", 64, "ready")
    metrics = server.client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    for name in ("logitcask_teacher_ready 1.0", "logitcask_tokens_captured_total", "process_cpu_seconds_total"):
        assert name in metrics.text
    assert 'route="/health",status="200"' in metrics.text


def test_health_answers_while_the_teacher_loads(serve):
    loaded = threading.Event()

    def load():
        loaded.wait(30)
        return fake_teacher()

    server = serve(load=load)
    assert server.client.get("/health").status_code == 200
    ready = server.client.get("/health/ready")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == [{"code": "teacher_loading", "message": "the teacher is loading"}]
    assert server.client.get("/v1/models").json()["data"] == []
    job = server.submit(server.upload([{"text": "hello"}]))  # accepted, and waits
    assert server.get(job["id"])["status"] == "validating"
    loaded.set()
    assert server.finish(job["id"])["status"] == "completed"


@pytest.mark.parametrize(
    ("capture", "param"),
    [
        ('{"temperatures": [2, 2, 3]}', "capture"),
        ('{"temperatures": [3, 2, 2]}', "capture"),
        ('{"tau": 1e-300}', "capture.tau"),
        ('{"tau": 1.36e-20}', "capture.tau"),
        ('{"temperatures": [1e999]}', "capture.temperatures.0"),
        ('{"temperatures": [Infinity]}', ""),
        ('{"tau": NaN}', ""),
    ],
)
def test_a_spec_that_cannot_be_honoured_is_refused_and_the_teacher_goes_on(server, corpus, capture, param):
    body = f'{{"corpus_id": "{corpus["id"]}", "cask": "c", "capture": {capture}}}'
    answer = server.client.post("/v1/extractions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert param in (answer.json()["error"]["param"] or "")
    assert server.finish(post(server, corpus).json()["id"])["status"] == "completed"
