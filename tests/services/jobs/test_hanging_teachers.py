"""Teachers that hang: how long that may last, what is ended and loaded again, and who is not blamed."""

import threading
from typing import Any

import pytest

from logitcask_services.jobs import watchdog
from tests.support.services.fake_teacher import HANGS, FakeEngine, fake_teacher
from tests.support.services.service_harness import cask_of, wait_for


@pytest.fixture
def hang_file(tmp_path, documents):
    """While it is there, the sixth document takes for ever."""
    documents[5]["input_ids"][1:1] = [HANGS]
    file = tmp_path / "hang"
    file.touch()
    return file


@pytest.mark.parametrize("interruptible", [True, False])
def test_a_cancel_waits_for_no_teacher_and_kills_none(serve, documents, tmp_path, interruptible):
    """A document may take long: the extraction ends, the teacher goes on, and the next extraction has it."""
    hang_file = tmp_path / "hang"
    hang_file.touch()
    documents[0]["input_ids"][1:1] = [HANGS]
    teacher: Any = fake_teacher(hang_file=hang_file, in_flight=1, interruptible=interruptible)
    server = serve(load=lambda: teacher, engine_hang_seconds=1000.0, cancel_grace_seconds=0.2)
    started = server.submit(server.upload(documents))
    wait_for(lambda: teacher.engine.given)
    server.client.post(f"/v1/extractions/{started['id']}/cancel")
    assert server.finish(started["id"])["status"] == "cancelled"
    assert (server.service.teacher.deaths, teacher.engine.interrupted.is_set()) == (0, False)
    hang_file.unlink()
    next_one = server.submit(server.upload(documents[1:5]), cask="next")
    assert server.finish(next_one["id"])["status"] == "completed"
    assert server.service.teacher.deaths == 0
    assert server.get(started["id"])["status"] == "cancelled"
    wait_for(lambda: not server.service.folders.token_store(started["id"]).exists())


def test_a_teacher_that_hangs_is_ended_and_loaded_again(serve, documents, tmp_path, hang_file):
    server = serve(fake={"hang_file": hang_file, "in_flight": 1}, engine_hang_seconds=0.4)
    started = server.submit(server.upload(documents))
    wait_for(lambda: server.service.teacher.deaths > 0)
    hang_file.unlink()
    assert server.finish(started["id"])["status"] == "completed"
    assert len(cask_of(tmp_path)) == 40


@pytest.mark.filterwarnings("ignore:.*logitcask-watchdog:pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("patience", "ends"), [(watchdog.KILLED_SECONDS, False), (0.0, True)])
def test_a_teacher_that_was_killed_may_take_its_time_to_end(serve, documents, hang_file, monkeypatch, patience, ends):
    """Longer than the operator lets a step take: the service itself does not end for that. The control has none."""
    gave_up = []
    monkeypatch.setattr(watchdog, "KILLED_SECONDS", patience)

    def end(self, reason):
        gave_up.append(reason)
        raise SystemExit  # of this thread, instead of the process

    monkeypatch.setattr(watchdog.Watchdog, "_end", end)
    monkeypatch.setattr(watchdog.Watchdog, "_note_hang", lambda self, reason: None)
    interrupt = FakeEngine.interrupt

    def interrupt_later(engine):
        threading.Timer(1.2, interrupt, [engine]).start()
        return True

    monkeypatch.setattr(FakeEngine, "interrupt", interrupt_later)
    server = serve(fake={"hang_file": hang_file, "in_flight": 1}, engine_hang_seconds=0.3)
    started = server.submit(server.upload(documents))
    wait_for(lambda: server.service.teacher.deaths > 0)
    hang_file.unlink()
    assert server.finish(started["id"])["status"] == "completed"
    assert bool(gave_up) == ends


@pytest.mark.parametrize(
    ("asked", "steps_seen", "is_ended"),
    [
        (None, True, True),
        (None, False, False),  # only results can be seen, and a text may be long
        (1000.0, True, False),
        (0.0, True, False),
    ],
)
def test_how_long_a_teacher_may_be_silent(monkeypatch, serve, documents, hang_file, asked, steps_seen, is_ended):
    """Unless the operator says so, a step may take less long than a result where steps are all unseen."""
    monkeypatch.setattr(watchdog, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "BLIND_HANG_SECONDS", 1000.0)

    def load():
        teacher: Any = fake_teacher(hang_file=hang_file, in_flight=1)
        if steps_seen:
            teacher.engine.step_silence = 1e6
        return teacher

    server = serve(load=load, engine_hang_seconds=asked)
    started = server.submit(server.upload(documents))
    wait_for(lambda: server.service.heartbeat.silence > 0.6 or server.service.teacher.deaths)
    assert bool(server.service.teacher.deaths) == is_ended
    hang_file.unlink()
    assert server.finish(started["id"])["status"] == "completed"


def test_a_document_that_hangs_every_teacher_is_isolated(serve, documents, tmp_path):
    documents[5]["input_ids"][1:1] = [HANGS]
    server = serve(fake={}, engine_hang_seconds=0.3)
    done = server.finish(server.submit(server.upload(documents))["id"])
    assert (done["status"], done["documents"]["captured"]) == ("completed", 39)
    assert [(e["custom_id"], e["code"]) for e in server.errors(done["id"])] == [("d5", "teacher_died")]
