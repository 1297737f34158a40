"""The queue over HTTP: priorities, order, pauses of one job and of all; a cask that was paused is as any other."""

import pytest

from logitcask_schemas.cask import Cask
from tests.support.services.generation_calls import LINES, create
from tests.support.services.service_harness import wait_for


@pytest.fixture
def held(serve):
    """A server whose queue is paused, so that what is submitted waits."""
    server = serve()
    server.client.post("/v1/pause").raise_for_status()
    return server


def queued(server, corpus, cask, **fields):
    job = server.submit(corpus, cask=cask, **fields)
    wait_for(lambda: server.get(job["id"])["status"] == "queued")
    return job["id"]


def order(server):
    return [entry["id"] for entry in server.client.get("/v1/queue").raise_for_status().json()["data"]]


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.arrow"))}


def test_jobs_go_by_priority_and_then_as_they_were_put(held):
    corpus = held.upload([{"text": "hello"}])
    first, second, urgent = (queued(held, corpus, name, priority=rank) for name, rank in (("a", 0), ("b", 0), ("c", 5)))
    assert order(held) == [urgent, first, second]
    assert held.get(urgent)["priority"] == 5
    changed = held.client.patch(f"/v1/extractions/{urgent}", json={"priority": -1}).raise_for_status().json()
    assert (changed["id"], changed["priority"]) == (urgent, -1)
    assert order(held) == [first, second, urgent]
    held.client.post(f"/v1/extractions/{urgent}/move", json={"before": second}).raise_for_status()
    assert order(held) == [first, urgent, second]
    assert held.get(urgent)["priority"] == 0, "it takes over the priority"
    held.client.post(f"/v1/extractions/{second}/move", json={}).raise_for_status()
    assert order(held) == [second, first, urgent]
    held.client.post("/v1/resume").raise_for_status()
    ends = [held.finish(job) for job in (second, first, urgent)]
    assert [job["status"] for job in ends] == ["completed"] * 3
    events = [held.client.get(f"/v1/extractions/{job['id']}/events").json()["data"] for job in ends]
    begun = [next(e["id"] for e in log if e["data"].get("status") == "in_progress") for log in events]
    assert begun == sorted(begun)


def test_what_has_no_place_in_the_queue_is_refused(held):
    corpus = held.upload([{"text": "hello"}])
    job = queued(held, corpus, "a")
    held.client.post("/v1/resume").raise_for_status()
    held.finish(job)
    for answer in (
        held.client.patch(f"/v1/extractions/{job}", json={"priority": 1}),
        held.client.post(f"/v1/extractions/{job}/move", json={}),
    ):
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "not_waiting"
        assert f"{job} is completed and has no place in the queue" in answer.json()["detail"]
    assert held.client.post(f"/v1/extractions/{job}/pause").json()["error"]["code"] == "illegal_transition"
    assert held.client.post("/v1/generations/generation-0/pause").status_code == 404
    assert held.client.post(f"/v1/generations/{job}/move", json={}).status_code == 404
    assert held.client.post(f"/v1/extractions/{job}/move", json={"before": "nobody"}).status_code in (404, 409)
    for body in ({"priority": 1001}, {"priority": "high"}, {"priority": None}, {}, {"priority": 1, "cask": "b"}):
        assert held.client.patch(f"/v1/extractions/{job}", json=body).status_code == 422


def test_a_paused_extraction_waits_and_goes_on_where_it_was(serve, documents, tmp_path):
    server = serve(fake={"seconds_per_document": 0.1, "in_flight": 2})
    corpus = server.upload(documents)
    job = server.submit(corpus)["id"]
    wait_for(lambda: server.get(job)["documents"]["captured"] > 0)
    answer = server.client.post(f"/v1/extractions/{job}/pause")
    assert (answer.status_code, answer.json()["status"]) == (202, "pausing")
    wait_for(lambda: server.get(job)["status"] == "paused")
    kept = server.get(job)["documents"]["captured"]
    assert 0 < kept < 40
    other = server.submit(corpus, cask="other")["id"]
    assert server.finish(other)["status"] == "completed", "others go on"
    assert server.get(job)["documents"]["captured"] == kept
    assert server.client.post(f"/v1/extractions/{job}/resume").status_code == 202
    done = server.finish(job)
    assert (done["status"], done["documents"]["captured"]) == ("completed", 40)
    assert done["pausing_at"] is not None
    assert files_of(tmp_path / "casks" / "cask") == files_of(tmp_path / "casks" / "other"), "not a byte differs"


def test_one_that_is_validated_is_paused_and_validated_again(serve, documents):
    server = serve(fake={"seconds_per_document": 0.1})
    corpus = server.upload(documents)
    server.client.post("/v1/pause").raise_for_status()
    jobs = [server.submit(corpus, cask=f"cask-{number}")["id"] for number in range(3)]
    for job in jobs:
        assert server.client.post(f"/v1/extractions/{job}/pause").json()["status"] in ("pausing", "paused")
    wait_for(lambda: {server.get(job)["status"] for job in jobs} == {"paused"})
    server.client.post("/v1/resume").raise_for_status()
    for job in jobs:
        server.client.post(f"/v1/extractions/{job}/resume").raise_for_status()
    assert {server.finish(job)["status"] for job in jobs} == {"completed"}


def test_a_paused_one_is_cancelled_at_once(held):
    job = queued(held, held.upload([{"text": "hello"}]), "a")
    assert held.client.post(f"/v1/extractions/{job}/pause").json()["status"] == "paused"
    assert held.client.post(f"/v1/extractions/{job}/cancel").json()["status"] == "cancelled"


def test_a_running_one_cannot_be_resumed(serve, documents):
    server = serve(fake={"seconds_per_document": 0.2, "in_flight": 2})
    job = server.submit(server.upload(documents))["id"]
    wait_for(lambda: server.get(job)["status"] == "in_progress")
    answer = server.client.post(f"/v1/extractions/{job}/resume")
    assert answer.status_code == 409
    assert "only a failed or paused one can be resumed" in answer.json()["detail"]
    assert server.get(job)["status"] == "in_progress"
    server.client.post(f"/v1/extractions/{job}/cancel")


def test_a_paused_queue_stays_so_over_a_restart_and_nothing_is_lost(serve, documents, tmp_path):
    server = serve(fake={"seconds_per_document": 0.1, "in_flight": 2})
    corpus = server.upload(documents)
    job = server.submit(corpus)["id"]
    wait_for(lambda: server.get(job)["documents"]["captured"] > 0)
    queue = server.client.post("/v1/pause").raise_for_status().json()
    assert queue["paused"]
    assert server.client.post("/v1/pause").json()["paused_at"] == queue["paused_at"], "twice is once"
    wait_for(lambda: server.get(job)["status"] == "queued")
    kept = server.get(job)["documents"]["captured"]
    assert kept < 40
    assert server.client.get("/health/ready").json()["paused"] is True
    server.stop()
    server = serve()
    assert server.client.get("/v1/queue").json()["paused"] is True
    assert server.get(job)["status"] == "queued"
    late = queued(server, corpus, "late")
    assert server.get(job)["documents"]["captured"] == kept
    assert not (tmp_path / "casks" / "late").exists()
    assert server.client.post("/v1/resume").json()["paused"] is False
    assert server.finish(job)["documents"]["captured"] == 40
    assert server.finish(late)["status"] == "completed"
    assert len(Cask.open(tmp_path / "casks" / "cask")) == 40
    assert files_of(tmp_path / "casks" / "cask") == files_of(tmp_path / "casks" / "late")


def test_a_generation_is_paused_and_goes_on(start):
    server = start(writer={"seconds_per_request": 0.05})
    answer = create(server, server.upload(LINES), priority=3)
    assert answer.status_code == 202, answer.text
    path = f"/v1/generations/{answer.json()['id']}"
    assert answer.json()["priority"] == 3
    server.client.post(f"{path}/pause")
    wait_for(lambda: server.client.get(path).json()["status"] == "paused")
    server.client.post(f"{path}/resume").raise_for_status()
    wait_for(lambda: server.client.get(path).json()["status"] == "completed")
