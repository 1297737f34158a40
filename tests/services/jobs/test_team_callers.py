"""Callers of scoring beside a teacher with many engines: whichever of them dies, at work or at rest, others answer."""

import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.process.fleet import EngineState
from logitcask_services.jobs.executors.chunk_orders import CaptureJob, WorkerManners
from logitcask_services.jobs.executors.local_pool import LocalPool
from logitcask_services.jobs.guests import ScoringGuests
from logitcask_services.jobs.live import Heartbeat
from logitcask_services.jobs.loaded_teacher import Teacher
from logitcask_services.jobs.scoring import Scoring
from logitcask_services.jobs.scoring_call import ScoringRefusedError
from logitcask_services.jobs.setbacks import TeacherDiedError
from tests.support.services.corpus_captures import files_of, some_documents
from tests.support.services.engine_fleets import EngineScript, SteppingEngine, fleet_teacher
from tests.support.services.fake_teacher import KILLER, FakeEngine, FakeTokenizer
from tests.support.services.scoring import code_of, equal, expected, ready, score
from tests.support.services.service_harness import wait_for

ENGINES = 3


@pytest.fixture
def slow(serve):
    """A server with many slow engines, and these; one that dies is not loaded again before a minute."""
    loads = EngineScript(lambda number: {"seconds_per_document": 0.05})
    return ready(serve(load=lambda: fleet_teacher(loads, ENGINES), engine_backoff_seconds=60.0)), loads


def finish_soon(server, job, engines):
    for engine in engines:
        engine.seconds_per_document = 0.0
    return server.finish(job["id"])


def test_they_are_scored_by_whoever_is_left_of_those_at_work(slow):
    """Engines die of callers until one is left, which is never the one that was first asked for them."""
    server, loads = slow
    job = server.submit(server.upload(some_documents(200)))
    wait_for(lambda: all(engine.given for engine in loads.loaded))
    killer = [CaptureTask(key=0, token_ids_L=np.array([1, KILLER], dtype=np.uint32))]
    call = server.service.scoring.submit(killer, CaptureSpec(), "teacher")
    with pytest.raises(ScoringRefusedError, match="the teacher died while it scored this request") as refused:
        call.future.result(20)
    assert refused.value.code == "teacher_died"
    wait_for(lambda: server.service.teacher.deaths == ENGINES - 1)  # another engine tried it, too, and no third
    assert score(server, [3, 4, 5]).status_code == 200
    assert server.get(job["id"])["status"] == "in_progress", "nobody waited for a load, or the job's end"
    assert len(loads.loaded) == ENGINES
    assert finish_soon(server, job, loads.loaded)["documents"]["captured"] == 200


@pytest.mark.parametrize("has_others", [True, False])
def test_what_an_engine_had_when_it_died_is_tried_by_another(has_others):
    """With the negative control: where none is left the caller is told."""
    scoring = Scoring(wake=lambda: None, heartbeat=Heartbeat(), progressed=lambda: None)
    token_ids = np.array([3, 4, 5], dtype=np.uint32)
    tasks = [CaptureTask(key=key, token_ids_L=token_ids) for key in range(2)]
    over = threading.Event()

    def as_they_come():
        yield tasks[0]
        while not over.is_set():
            yield None

    living = scoring.among(FakeEngine(), as_they_come(), CaptureSpec())
    if has_others:
        assert next(living).key == 0
    call = scoring.submit([CaptureTask(key=0, token_ids_L=token_ids)], CaptureSpec())
    with pytest.raises(RuntimeError, match="out of memory, as scripted"):
        list(scoring.among(FakeEngine(fatal_documents=1), tasks, CaptureSpec()))
    assert (call.future.done(), scoring.waiting_sequences) == (not has_others, int(has_others))
    call.future.add_done_callback(lambda _: over.set())
    assert [result.key for result in living] == ([] if has_others else [0])
    if has_others:
        (document,) = call.future.result()
        equal(document, expected([3, 4, 5]))
    else:
        with pytest.raises(ScoringRefusedError, match="out of memory, as scripted"):
            call.future.result()


def test_at_rest_a_dead_engine_alone_is_loaded_again_by_the_next_job(serve):
    loads = EngineScript()
    server = ready(serve(load=lambda: fleet_teacher(loads, ENGINES)))
    documents = some_documents()
    assert server.finish(server.submit(server.upload(documents))["id"])["status"] == "completed"
    teacher = server.service.teacher
    place = loads.places[1]
    loads.loaded[1].death = "killed, as scripted"
    wait_for(lambda: (teacher.in_memory.engine_states[place], teacher.deaths) == ("absent", 1))
    assert (teacher.deaths, teacher.loads, len(loads.loaded)) == (1, 1, ENGINES)
    assert server.client.get("/health/ready").status_code == 200
    assert score(server, [3, 4, 5]).status_code == 200
    again = server.finish(server.submit(server.upload(documents), cask="again")["id"])
    assert again["documents"]["captured"] == 300
    wait_for(lambda: teacher.in_memory.engine_states == ["idle"] * ENGINES)
    assert (teacher.loads, loads.places[ENGINES:]) == (1, [place])


def test_an_engine_that_dies_of_a_caller_at_rest_leaves_the_others(serve):
    loads = EngineScript()
    server = ready(serve(load=lambda: fleet_teacher(loads, ENGINES)))
    assert code_of(score(server, [1, KILLER])) == (503, "teacher_died")
    assert score(server, [3, 4, 5]).status_code == 200
    teacher = server.service.teacher
    assert (teacher.loads, teacher.deaths, len(loads.loaded)) == (1, 1, ENGINES)
    assert teacher.in_memory.engine_states == ["absent", "idle", "idle"]
    assert code_of(score(server, [1, KILLER])) == (503, "teacher_died")
    assert score(server, [3, 4, 5]).status_code == 200
    assert teacher.in_memory.engine_states == ["absent", "absent", "idle"]
    # When the last one is gone, all are loaded again, as those of any teacher.
    assert code_of(score(server, [2, KILLER])) == (503, "teacher_died")
    wait_for(lambda: teacher.in_memory.engine_states == ["idle"] * ENGINES)
    assert teacher.loads == 2


def test_an_engine_that_stands_still_at_rest_is_killed_alone(serve):
    loads = EngineScript()
    server = ready(serve(load=lambda: fleet_teacher(loads, ENGINES), engine_hang_seconds=100.0))
    teacher, place = server.service.teacher, loads.places[2]
    loads.loaded[2].stillness = loads.loaded[2].step_silence = 1000.0
    wait_for(lambda: (teacher.in_memory.engine_states[place], teacher.deaths) == ("absent", 1))
    assert [engine.interrupted.is_set() for engine in loads.loaded] == [False, False, True]
    assert (teacher.loads, teacher.deaths) == (1, 1)


@pytest.mark.parametrize("has_others", [True, False])
def test_beside_a_generation_too_one_of_many_may_die(has_others):
    """Of callers who are let in between its chunks; where none is left the generation's teacher has died."""
    asked = list[BaseException]()

    def alone(engine, ends):
        raise TeacherDiedError("killed by a caller, as scripted")

    def outlives(error):
        asked.append(error)
        return has_others

    context: Any = SimpleNamespace(
        signals=SimpleNamespace(stopping=threading.Event()),
        scoring=SimpleNamespace(alone=alone),
        teacher=SimpleNamespace(outlives=outlives),
    )
    with nullcontext() if has_others else pytest.raises(TeacherDiedError):
        ScoringGuests(context, FakeEngine()).serve()
    assert [str(error) for error in asked] == ["killed by a caller, as scripted"]


@dataclass
class Elsewhere:
    """A team whose workers let no callers in, as on other machines."""

    lets_callers_in: bool = False
    size: int = 2
    states: list[EngineState] = field(default_factory=list)
    engines: list[FakeEngine] = field(default_factory=list)

    def pool(self, job: CaptureJob, manners: WorkerManners) -> LocalPool:
        return LocalPool(job, self.load)

    def load(self) -> FakeEngine:
        self.engines.append(FakeEngine(seconds_per_document=0.05))
        return self.engines[-1]


@pytest.mark.parametrize("dies", [False, True])
def test_beside_a_job_on_other_machines_the_own_engine_scores(serve, tmp_path, dies):
    """One that dies of it is loaded again after the job, which does not notice."""
    team, here = Elsewhere(), list[SteppingEngine]()

    def load() -> Teacher:
        here.append(SteppingEngine())
        return Teacher(engine=here[-1], tokenizer=FakeTokenizer(), team=team)

    server = ready(serve(load=load))
    documents = some_documents(200)
    job = server.submit(server.upload(documents))
    wait_for(lambda: team.engines and team.engines[0].given)
    for _ in range(2):
        assert score(server, [3, 4, 5]).status_code == 200
    if dies:
        assert code_of(score(server, [1, KILLER])) == (503, "teacher_died")
    assert server.get(job["id"])["status"] == "in_progress"
    assert finish_soon(server, job, team.engines)["documents"]["captured"] == 200
    assert here[0].given == 2 + dies
    if dies:
        wait_for(lambda: server.service.teacher.deaths == 1)  # told once the job is over
    assert score(ready(server), [3, 4, 5]).status_code == 200
    assert (server.service.teacher.loads, server.service.teacher.deaths) == (1 + dies, int(dies))
    calm = serve(cask_root=tmp_path / "calm/casks", data_dir=tmp_path / "calm/state")
    calm.finish(calm.submit(calm.upload(documents))["id"])
    assert files_of(tmp_path / "casks/cask") == files_of(tmp_path / "calm/casks/cask")
