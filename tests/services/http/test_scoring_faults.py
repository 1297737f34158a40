"""Scoring when something goes wrong: callers that go, sequences that kill, a teacher that is not there."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.connection import ServiceError
from logitcask_services.engines.engine import EngineError
from logitcask_services.jobs.loaded_teacher import Teacher
from tests.support.services.fake_teacher import (
    GARBAGE,
    HANGS,
    KILLER,
    POISON,
    FakeEngine,
    FakeTokenizer,
    fake_teacher,
)
from tests.support.services.scoring import code_of, ready, score
from tests.support.services.service_harness import wait_for


def test_who_waits_too_long_is_told_and_dropped(serve):
    server = ready(serve(fake={"seconds_per_document": 0.3, "in_flight": 1}))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(score, server, *([number, 2] for number in range(6)))
        wait_for(lambda: server.service.scoring.waiting_tokens == 10)
        late = score(server, [7, 7, 7], timeout=0.05)
        assert (code_of(late), late.headers["retry-after"]) == ((503, "not_in_time"), "5")
        assert server.service.scoring.waiting_tokens <= 10
        assert first.result().status_code == 200


def test_what_a_caller_that_has_gone_asked_for_is_not_begun(serve):
    engine = FakeEngine(seconds_per_document=0.3, in_flight=1)
    server = ready(serve(load=lambda: Teacher(engine=engine, tokenizer=FakeTokenizer())))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(score, server, [1, 2], [1, 3], [1, 4], [1, 5])
        wait_for(lambda: engine.given == 1)
        with ServiceClient(server.url) as client, pytest.raises(ServiceError):
            client.score([[8, number] for number in range(20)], timeout=0.01)
        wait_for(lambda: server.service.scoring.waiting_tokens <= 6)
        assert first.result().status_code == 200
    assert engine.given == 4


def test_a_sequence_that_fails_is_named_and_fails_its_own_call_alone(serve):
    server = ready(serve())
    with ThreadPoolExecutor(3) as pool:
        good = pool.submit(score, server, *([number, 9] for number in range(30)))
        poisoned = pool.submit(score, server, [1, 2], [POISON, 2])
        garbage = pool.submit(score, server, [GARBAGE, 2])
    assert good.result().status_code == 200
    assert code_of(poisoned.result()) == code_of(garbage.result()) == (422, "capture_failed")
    assert "sequence 1: poisoned, as scripted" in poisoned.result().json()["detail"]
    assert "NaN" in garbage.result().json()["detail"]


def test_a_sequence_that_kills_the_teacher_twice_alone_is_refused(serve):
    server = ready(serve())
    for _ in range(2):
        answer = score(server, [KILLER, 2])
        assert (code_of(answer), answer.headers["retry-after"]) == ((503, "teacher_died"), "5")
        ready(server)
    assert code_of(score(server, [KILLER, 2])) == (422, "kills_teacher")
    assert server.service.teacher.deaths == 2
    assert score(server, [1, 2]).status_code == 200


class SlowToEnd(FakeEngine):
    def close(self):
        time.sleep(1.0)
        super().close()


class EndsEarly(SlowToEnd):
    """Breaks the protocol: ends its stream with the killer in hand, and whatever it had taken before it."""

    def capture(self, tasks, spec):
        it_is_alive = itertools.takewhile(lambda task: task is None or task.token_ids_L[0] != KILLER, tasks)
        return super().capture(it_is_alive, spec)


@pytest.mark.parametrize("engine", [SlowToEnd, EndsEarly])
def test_who_was_told_of_a_death_is_not_told_that_the_teacher_is_ready(serve, engine):
    engines = iter([engine(), FakeEngine()])
    server = ready(serve(load=lambda: Teacher(engine=next(engines), tokenizer=FakeTokenizer())))
    assert code_of(score(server, [KILLER, 2])) == (503, "teacher_died")
    readiness = server.client.get("/health/ready")
    assert (readiness.status_code, readiness.json()["reasons"][0]["code"]) == (503, "teacher_restarting")
    assert code_of(score(server, [1, 2])) == (503, "teacher_restarting")
    assert score(ready(server), [1, 2]).status_code == 200


def test_a_dead_teacher_is_not_called_ready_while_it_is_freed(serve):
    states = []

    class SaysHowItIsCalled(FakeEngine):
        def close(self):
            states.append(server.service.teacher.state)
            super().close()

    engines = iter([SaysHowItIsCalled(), FakeEngine()])
    server = ready(serve(load=lambda: Teacher(engine=next(engines), tokenizer=FakeTokenizer())))
    server.service.teacher.died(EngineError("died at rest, as scripted"))  # in the place of the worker, which rests
    assert states == ["restarting"]


def test_a_killer_among_others_is_tried_alone_and_the_others_are_not_blamed(serve):
    server = ready(serve(fake={"seconds_per_document": 0.01}))
    others = [[number, 3] for number in range(3)]
    codes = []
    while not codes or codes[-1] != "kills_teacher":
        ready(server)
        codes.append(score(server, *others, [KILLER, 2]).json()["error"]["code"])
        assert len(codes) < 8, codes
        assert score(ready(server), *others).status_code == 200
    assert codes == ["teacher_died"] * 4 + ["kills_teacher"]


def test_an_extraction_outlives_what_callers_do_to_its_teacher(serve, documents):
    server = ready(serve(fake={"seconds_per_document": 0.01}, engine_restarts=3))
    job = server.submit(server.upload(documents))
    wait_for(lambda: server.get(job["id"])["status"] == "in_progress")
    codes = set()
    for number in range(3):
        ready(server)
        codes.add(score(server, [KILLER, number], timeout=20).json()["error"]["code"])
    done = server.finish(job["id"])
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 40)
    assert "teacher_died" in codes
    assert server.errors(job["id"]) == []


def test_a_teacher_that_hangs_on_a_sequence_is_killed(serve):
    server = ready(serve(engine_hang_seconds=0.3))
    assert code_of(score(server, [HANGS, 2])) == (503, "teacher_died")
    assert score(ready(server), [1, 2]).status_code == 200


def test_while_the_teacher_loads_callers_are_told_to_come_again(serve):
    go_on = threading.Event()

    def load():
        go_on.wait(60)
        return fake_teacher()

    server = serve(load=load)
    try:
        answer = score(server, [1, 2])
        assert (code_of(answer), answer.headers["retry-after"]) == ((503, "teacher_loading"), "5")
    finally:
        go_on.set()
    assert score(ready(server), [1, 2]).status_code == 200


def test_a_service_that_stops_tells_who_waits(serve):
    server = ready(serve(fake={"seconds_per_document": 0.1, "in_flight": 1}))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(score, server, *([number, 2] for number in range(600)))
        wait_for(lambda: server.service.scoring.waiting_tokens)
        began = time.monotonic()
        server.service.signals.stop()
        assert code_of(asked.result()) == (503, "stopping")
        assert time.monotonic() - began < 20
    wait_for(lambda: server.service.scoring.waiting_tokens == 0)
    with ServiceClient(server.url) as client, pytest.raises(ServiceError, match="stop"):
        client.score([[1, 2]])
