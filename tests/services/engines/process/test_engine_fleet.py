"""Several engines of one teacher: loaded at once, lent one by one, kept while they are well, on GPUs of their own."""

import os
import signal
import threading

import numpy as np
import pytest

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.engines.engine import CaptureTask, EngineError
from logitcask_services.engines.process.door import ProcessEngine
from logitcask_services.engines.process.fleet import EngineFleet
from logitcask_services.engines.process.loads import interrupt_loading
from logitcask_services.engines.process.process import EngineProcess
from tests.support.services.engine_fleets import EngineScript
from tests.support.services.fake_teacher import KILLER, identity
from tests.support.services.process_engines import fake_engine, is_alive
from tests.support.services.service_harness import wait_for

LOADERS = "tests.support.services.process_engines"


def test_engines_are_lent_from_the_first_on_and_kept():
    loads = EngineScript()
    fleet = EngineFleet(loads, 3).load()
    assert sorted(loads.places) == [0, 1, 2]
    assert fleet.states == ["idle"] * 3
    one, two = fleet.lend(), fleet.lend()
    assert (one.place, two.place) == (0, 1)
    assert fleet.states == ["working", "working", "idle"]
    one.close()
    one.close()
    assert fleet.lend().place == 0
    assert len(loads.loaded) == 3
    fleet.close()
    assert all(engine.closed for engine in loads.loaded)


def test_one_that_was_interrupted_is_replaced():
    loads = EngineScript()
    fleet = EngineFleet(loads, 2).load()
    lent = fleet.lend()
    lent.interrupt()
    lent.close()
    assert fleet.states[0] == "absent"
    assert (fleet.ended, len(loads.loaded)) == (None, 2)
    assert fleet.lend().place == 1, "one that lives comes before one that must be loaded"
    assert len(loads.loaded) == 2
    assert fleet.lend().place == 0
    assert loads.places[-1] == 0
    assert len(loads.loaded) == 3


def test_at_rest_the_dead_are_dropped_and_the_others_answer():
    loads = EngineScript()
    fleet = EngineFleet(loads, 3).load()
    by_place = dict(zip(loads.places, loads.loaded, strict=True))
    by_place[0].death = "killed, as scripted"
    assert fleet.ended == "killed, as scripted"
    assert fleet.drop_ended()
    assert fleet.states == ["absent", "idle", "idle"]
    assert by_place[0].closed
    task = CaptureTask(key=0, token_ids_L=np.array([1, 2, 3], dtype=np.uint32))
    assert [result.key for result in fleet.capture([task], CaptureSpec())] == [0]
    assert [by_place[place].given for place in range(3)] == [0, 1, 0]
    for place in (1, 2):
        by_place[place].death = "killed, as scripted"
    assert not fleet.drop_ended()
    with pytest.raises(EngineError, match="no engine of the teacher is loaded"):
        list(fleet.capture([task], CaptureSpec()))
    assert len(loads.loaded) == 3, "nothing is loaded by all that"


def test_one_that_raises_is_closed_and_the_next_one_answers():
    loads = EngineScript()
    fleet = EngineFleet(loads, 2).load()
    tasks = [CaptureTask(key=key, token_ids_L=np.array([1, key], dtype=np.uint32)) for key in (KILLER, 3)]
    with pytest.raises(RuntimeError, match="killed by a document, as scripted"):
        list(fleet.capture(tasks[:1], CaptureSpec()))
    assert fleet.states == ["absent", "idle"]
    assert [result.key for result in fleet.capture(tasks[1:], CaptureSpec())] == [3]


def test_of_those_at_rest_only_the_silent_are_killed():
    loads = EngineScript(lambda number: {"step_silence": [0.5, 400.0, 2.0][number]})
    fleet = EngineFleet(loads, 3).load()
    assert fleet.interrupt_silent(300.0)
    assert [engine.interrupted.is_set() for engine in loads.loaded] == [False, True, False]
    loads.loaded[1].interrupted.clear()
    loads.loaded[1].step_silence = 0.0
    assert fleet.interrupt_silent(300.0), "somebody waits in vain: the one that is silent the longest is at fault"
    assert [engine.interrupted.is_set() for engine in loads.loaded] == [False, False, True]


def test_without_keeping_each_borrower_loads_its_own():
    loads = EngineScript()
    fleet = EngineFleet(loads, 2, keeps=False)
    for _ in range(2):
        fleet.lend().close()
    assert loads.places == [0, 0]
    assert all(engine.closed for engine in loads.loaded)


def test_what_is_loaded_again_must_be_the_same_teacher():
    who = [identity(), identity(), identity(weights_digest="1" * 64)]
    fleet = EngineFleet(EngineScript(lambda number: {"identity": who[number]}), 2).load()
    lent = fleet.lend()
    lent.interrupt()
    lent.close()
    fleet.lend()
    with pytest.raises(EngineError, match=r"engine 0 is of another teacher than the first one was .*weights_digest"):
        fleet.lend()
    assert fleet.states == ["absent", "working"]


def test_a_load_that_fails_ends_the_others():
    pids = list[int]()

    def load(place: int) -> ProcessEngine:
        if place == 1:
            raise RuntimeError("no memory, as scripted")
        engine = fake_engine()
        pids.append(engine.pid)
        return engine

    with pytest.raises(RuntimeError, match="no memory, as scripted"):
        EngineFleet(load, 2).load()
    wait_for(lambda: not any(map(is_alive, pids)))


def test_whoever_loads_a_fleet_can_be_interrupted(tmp_path):
    """All its engines are, whichever threads load them."""
    fleet = EngineFleet(lambda place: fake_engine("load_slowly", pids=str(tmp_path / str(place))), 2)
    raised = list[BaseException]()

    def load() -> None:
        try:
            fleet.load()
        except EngineError as error:
            raised.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    files = [tmp_path / str(place) for place in range(2)]
    wait_for(lambda: all(file.exists() and len(file.read_text().split()) == 2 for file in files))
    assert thread.ident is not None
    assert interrupt_loading(thread.ident)
    thread.join(20)
    assert not thread.is_alive()
    assert len(raised) == 1
    wait_for(lambda: not any(is_alive(int(pid)) for file in files for pid in file.read_text().split()))


def test_one_whose_process_was_killed_is_seen_and_replaced():
    fleet = EngineFleet(lambda place: fake_engine(), 2).load()
    try:
        first = fleet.lend()
        pid = first._engine.pid  # type: ignore[attr-defined]  # of a process
        first.close()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: fleet.ended is not None)
        assert fleet.lend().place == 1, "the one that lives"
        again = fleet.lend()
        assert fleet.ended is None, "whoever has one looks after it"
        task = CaptureTask(key=0, token_ids_L=np.array([1, 2, 3], dtype=np.uint32))
        assert [result.key for result in again.capture([task], CaptureSpec())] == [0]
    finally:
        fleet.close()


def test_a_process_sees_the_devices_it_is_told(tmp_path):
    for place, devices in enumerate(("0,1", "2,3")):
        file = tmp_path / str(place)
        document = {"variable": "CUDA_VISIBLE_DEVICES", "file": str(file)}
        process = EngineProcess(f"{LOADERS}:load_noting", document, {"CUDA_VISIBLE_DEVICES": devices})
        process.close()
        assert file.read_text() == devices
