"""Scoring now while the teacher writes: let in between chunks where it can do both, else told at once to come later."""

import threading

import pytest

from logitcask_services.jobs.scoring_call import ScoringCall
from logitcask_services.service import Service
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.generation_calls import create, finish
from tests.support.services.generations import teacher_of
from tests.support.services.service_harness import RunningServer, wait_for

QUESTIONS = [{"question": f"row {number}"} for number in range(100)]


def score(server, *sequences, **fields):
    return server.client.post("/v1/score", json={"input_ids": list(sequences), **fields})


def metrics(server):
    """Name with labels to value, of scoring's."""
    lines = server.client.get("/metrics").raise_for_status().text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("logitcask_scoring"))
    return {name: float(value) for name, value in pairs}


@pytest.fixture
def by_turns(make_settings, templates):
    """A function: a server whose teacher is loaded to capture or to write, never both."""
    started = []

    def start_(generator, **settings):
        server = RunningServer(Service(make_settings(templates=templates, **settings), teacher_of(generator)), None)
        server.start()
        started.append(server)
        wait_for(lambda: server.client.get("/health/ready").status_code == 200)
        return server

    yield start_
    for server in started:
        server.stop()


def test_who_comes_while_the_teacher_writes_is_told_at_once_whom_it_writes_for(by_turns):
    go_on = threading.Event()

    def answer_later(prompt, seed):
        assert go_on.wait(60)
        return "5"

    server = by_turns(FakeGenerator(max_model_len=512, answers=answer_later))
    job = create(server, server.upload(QUESTIONS)).json()
    try:
        wait_for(lambda: server.service.scoring.blocked_by == job["id"])
        wait_for(lambda: server.client.get(f"/v1/generations/{job['id']}").json()["stages"])
        answer = score(server, [1, 2], timeout=500)  # the teacher would not come to it before the test ends
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "teacher_writing")
        assert f"writes for {job['id']}, 0 of 200 requests of step 0, it is not known for how long" in answer.text
        assert answer.headers["retry-after"] == "30"
        assert server.service.scoring.waiting_tokens == 0
        assert metrics(server)['logitcask_scoring_refusals_total{code="teacher_writing"}'] == 1
    finally:
        go_on.set()
    assert finish(server, job["id"])["status"] == "completed"
    wait_for(lambda: server.service.scoring.blocked_by is None)
    assert score(server, [1, 2]).status_code == 200


def test_who_waits_when_the_teacher_begins_to_write_is_told_too(by_turns):
    """A call that the capturing teacher did not get to is not left waiting for a generation."""
    server = by_turns(FakeGenerator(max_model_len=512))
    server.service.scoring.submit = lambda tasks, spec, teacher: _never(server)
    answer = score(server, [1, 2], timeout=500)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "teacher_writing")


def _never(server):
    job = create(server, server.upload(QUESTIONS[:1])).json()
    finish(server, job["id"])
    server.service.scoring.blocked_by = job["id"]
    return ScoringCall(1)


def test_a_teacher_that_does_both_scores_between_chunks(start):
    """While chunk after chunk is written: each call is answered before the generation ends."""
    held = threading.Event()

    def answer(prompt, seed):
        assert "row 60\n" not in prompt or held.wait(60)
        return "5"

    server = start(writer={"in_flight": 1, "answers": answer})
    job = create(server, server.upload(QUESTIONS)).json()
    path = f"/v1/generations/{job['id']}"
    waits = server.service.scoring
    calls = []
    caller = threading.Thread(target=lambda: calls.append(score(server, [1, 2], [3, 4], timeout=60)))
    try:
        wait_for(lambda: any(stage["requests_done"] >= 64 for stage in server.client.get(path).json()["stages"]))
        caller.start()
        wait_for(lambda: waits.is_waited_for)
    finally:
        held.set()
    caller.join(60)
    assert calls[0].status_code == 200
    done = finish(server, job["id"])
    assert (done["status"], done["rows"]["kept"]) == ("completed", 200)
    assert [stage["requests_done"] for stage in done["stages"]] == [200]
    seen = metrics(server)
    assert (seen["logitcask_scoring_sequences_total"], seen["logitcask_scoring_tokens_total"]) == (2, 4)
    assert (seen["logitcask_scoring_waiting_tokens"], seen["logitcask_scoring_waiting_sequences"]) == (0, 0)


def test_bounds_are_the_operators(start):
    server = start(score_request_sequences=2, score_request_tokens=6, score_deadline_seconds=0.2)
    assert score(server, [1, 2], [3, 4]).status_code == 200
    for sequences, told in (([[1, 2]] * 3, "at most 2 sequences and 6 tokens"), ([[1] * 7], "this one has 1 and 7")):
        answer = score(server, *sequences)
        assert (answer.status_code, told in answer.json()["detail"]) == (413, True)
    server.service.scoring.submit = lambda tasks, spec, teacher: ScoringCall(1)  # nobody gets to it
    late = score(server, [1, 2], timeout=500)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "not_in_time")
    assert "within 0.2 s" in late.json()["detail"]
    assert "(at most 0.2 s here)" in late.json()["detail"]
