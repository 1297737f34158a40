"""An engine in a process of its own dies, hangs and runs out of memory: the service goes on, and so does the job.

`LOGITCASK_ENGINE_FAULTS` sets how many faults there are in one job (default 5, one of each kind).
"""

import errno
import os
import signal
import threading
import time
from itertools import cycle, islice

import pytest

from logitcask_schemas.cask import Cask
from logitcask_services.jobs.loaded_teacher import Teacher
from tests.support.services.fake_teacher import KILLER, FakeTokenizer, fake_teacher
from tests.support.services.process_engines import FAULTS, fake_engine, is_alive
from tests.support.services.server_process import ServerProcess
from tests.support.services.service_harness import jsonl, wait_for

MANY = int(os.environ.get("LOGITCASK_ENGINE_FAULTS", str(len(FAULTS))))
HANG_SECONDS = 2.5
"""Above the second between two beats."""
DOCUMENTS_OF_A_LIFE = 40


def documents_of(count):
    return [
        {"input_ids": [(7 * number + at) % 600 for at in range(4 + (number * 13) % 40)] + [number % 600, number // 600]}
        for number in range(count)
    ]


def shards(folder, cask):
    return {path.name: path.read_bytes() for path in (folder / "casks" / cask / "shards").iterdir()}


@pytest.fixture
def pids():
    """Of engines that a test starts: with the services, which end before this does, they are gone."""
    started = []
    yield started
    wait_for(lambda: not any(map(is_alive, started)))


@pytest.fixture
def serve_faulty(pids, serve, tmp_path):
    """A function: a server whose engine meets these faults, one in each of its lives, and the engines' ids so far."""

    def start(faults=(), **settings):
        file = tmp_path / "faults"
        file.write_text("\n".join(faults))

        def load():
            engine = fake_engine(faults=str(file), after=DOCUMENTS_OF_A_LIFE)
            pids.append(engine.pid)
            return Teacher(engine=engine, tokenizer=FakeTokenizer())

        return serve(load=load, engine_hang_seconds=HANG_SECONDS, **settings), pids

    return start


def calm_shards(serve, tmp_path, documents):
    server = serve(cask_root=tmp_path / "calm" / "casks", data_dir=tmp_path / "calm" / "state")
    assert server.finish(server.submit(server.upload(documents))["id"])["status"] == "completed"
    return shards(tmp_path / "calm", "cask")


def test_hung_engine_is_restarted(serve_faulty, serve, tmp_path):
    """A step that never returns: the process is killed, another one loaded, the chunk captured again."""
    documents = documents_of(200)
    server, pids = serve_faulty(["hung"])
    done = server.finish(server.submit(server.upload(documents))["id"], 120)
    assert (done["status"], done["documents"]["captured"]) == ("completed", 200)
    teacher = server.service.teacher
    assert (teacher.deaths, teacher.restarts, teacher.loads, len(set(pids))) == (1, 1, 2, 2)
    assert not is_alive(pids[0])
    assert shards(tmp_path, "cask") == calm_shards(serve, tmp_path, documents)


def test_killed_hung_and_out_of_memory_by_turns(serve_faulty, serve, tmp_path):
    """Many times in one job: the cask is that of a calm one, and the service answers all the time."""
    documents = documents_of(50 * MANY)
    server, pids = serve_faulty(islice(cycle(FAULTS), MANY))
    stop, answers, longest = threading.Event(), set(), [0.0]

    def watch():
        unready_since = None
        while not stop.wait(0.02):
            assert server.client.get("/health").status_code == 200
            ready = server.client.get("/health/ready")
            answers.add((ready.status_code, *(reason["code"] for reason in ready.json()["reasons"])))
            if ready.status_code == 200:
                unready_since = None
            else:
                unready_since = unready_since or time.monotonic()
                longest[0] = max(longest[0], time.monotonic() - unready_since)

    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    watcher = threading.Thread(target=watch)
    watcher.start()
    done = server.finish(server.submit(server.upload(documents))["id"], 20 * MANY)
    stop.set()
    watcher.join()
    print(f"{MANY} faults, unready for at most {longest[0]:.1f} s")
    assert (done["status"], done["documents"]["captured"]) == ("completed", len(documents))
    teacher = server.service.teacher
    assert (teacher.deaths, teacher.restarts, len(set(pids))) == (MANY, MANY, MANY + 1)
    assert answers == {(200,), (503, "teacher_restarting")}, "unready while it restarts, and never for another reason"
    assert shards(tmp_path, "cask") == calm_shards(serve, tmp_path, documents)


def test_a_document_that_kills_the_process_is_found_and_left_out(serve_faulty, tmp_path):
    documents = documents_of(40)
    documents[17]["input_ids"][1] = KILLER
    documents[17]["custom_id"] = "killer"
    server, _ = serve_faulty()
    done = server.finish(server.submit(server.upload(documents))["id"], 120)
    assert (done["status"], done["documents"]["captured"]) == ("completed", 39)
    (error,) = server.errors(done["id"])
    assert (error["custom_id"], error["code"]) == ("killer", "teacher_died")
    assert len(Cask.open(tmp_path / "casks" / "cask")) == 39


def test_a_machine_without_descriptors_is_waited_for(serve, documents):
    """More often than a teacher may die: that is nobody's fault, and passes."""
    left = [OSError(errno.EMFILE, "Too many open files")] * 4

    def load():
        if left:
            raise left.pop()
        return fake_teacher()

    server = serve(load=load, engine_restarts=2, engine_backoff_seconds=0.05)
    assert server.finish(server.submit(server.upload(documents))["id"])["status"] == "completed"
    assert (server.service.teacher.deaths, server.service.teacher.loads) == (0, 1)


def test_a_service_that_stood_still_itself_blames_nobody(tmp_path):
    """Ctrl-Z, or a machine that was paused: its engine has been well all the time."""
    settings = {"engine_hang_seconds": 4.0, "child": {"seconds_per_document": 0.02}}
    server = ServerProcess(tmp_path / "it", settings)
    corpus = server.client.post("/v1/corpora", content=jsonl(documents_of(150))).raise_for_status().json()
    body = {"corpus_id": corpus["id"], "cask": "cask"}
    job = server.client.post("/v1/extractions", json=body).raise_for_status().json()["id"]
    wait_for(lambda: server.status(job)["status"] == "in_progress", 60)
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(7.0)
    os.kill(server.pid, signal.SIGCONT)
    wait_for(lambda: server.status(job)["status"] == "completed", 60)
    assert "logitcask_teacher_deaths_total 0.0" in server.client.get("/metrics").text
    assert server.end() == 0


def test_a_load_that_takes_too_long_is_ended_and_the_service_goes_on(serve, tmp_path, documents):
    pids = tmp_path / "pids"

    def load():
        engine = fake_engine() if pids.exists() else fake_engine("load_slowly", pids=str(pids))
        return Teacher(engine=engine, tokenizer=FakeTokenizer())

    server = serve(load=load, load_deadline_seconds=15.0)  # a busy machine takes seconds to start a process
    done = server.finish(server.submit(server.upload(documents))["id"], 120)
    assert done["status"] == "completed"
    assert (server.service.teacher.deaths, server.service.teacher.restarts) == (0, 1)
    assert not any(is_alive(int(pid)) for pid in pids.read_text().split())
