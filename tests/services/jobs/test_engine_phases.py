"""The engine's process is killed, or stands still, in each of its phases: said, nothing lost, it goes on.

Phases: nothing to do, scoring, loading to write, writing, loading to capture, loading for hints. A service that met all
of them ends with what one ends with that was left alone.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from logitcask_schemas.cask import Cask
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.generations import files_of
from tests.support.services.process_engines import is_alive
from tests.support.services.process_roster import ProcessRoster
from tests.support.services.scoring import code_of, score
from tests.support.services.service_harness import wait_for

PROMPTS = [{"input_ids": [1, 2, 3 + number], "custom_id": f"p{number}"} for number in range(60)]
SAMPLING = {"n": 2, "temperature": 1.0, "max_tokens": 64}
PLAN = {
    "steps": [{"kind": "generate", "template": "input-ids", "sampling": SAMPLING}],
    "emit": [{"completion": "output"}],
}
HINTS = {"layers": [2, 6], "codec": "i8"}
HANG_SECONDS = 2.5


def ready(server):
    return server.client.get("/health/ready").status_code == 200


def reasons(server):
    return [(each["code"], each["message"]) for each in server.client.get("/health/ready").json()["reasons"]]


def is_restarting(server):
    return any(code == "teacher_restarting" for code, _ in reasons(server))


def generated(server):
    """The request to write, whose corpus is captured into `written`."""
    corpus = server.upload(PROMPTS)
    body = {"corpus_id": corpus["id"], **PLAN, "extraction": {"cask": "written"}}
    answer = server.client.post("/v1/generations", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def finish(server, generation_id, documents):
    """Wait for what was written and its cask, then capture with hints."""
    path = f"/v1/generations/{generation_id}"
    wait_for(lambda: server.client.get(path).json()["status"] == "completed", 60)
    (made,) = server.client.get(path).json()["corpora"]
    assert server.finish(made["extraction_id"])["status"] == "completed"
    hinted = server.submit(server.upload(documents), cask="hinted", capture={"hints": HINTS})
    return hinted["id"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_each_phase(number, serve, tmp_path, documents):
    calm = ProcessRoster(names=("small",), folder=tmp_path)
    server = serve(roster=calm, cask_root=tmp_path / "calm" / "casks", data_dir=tmp_path / "calm" / "state")
    hinted = finish(server, generated(server), documents)
    assert server.finish(hinted)["status"] == "completed"

    log = tmp_path / "asked"
    roster = ProcessRoster(
        names=("small",),
        folder=tmp_path,
        script={"seconds_per_document": 0.05, "in_flight": 2},
        writer={"seconds_per_request": 0.03, "log": str(log)},
    )
    # A process that was killed has ended, whatever it said last.
    hang = HANG_SECONDS if number == signal.SIGSTOP else 1000.0
    server = serve(roster=roster, engine_hang_seconds=hang, engine_backoff_seconds=0.5)
    wait_for(lambda: ready(server))

    # Nothing to do.
    os.kill(roster.pids[-1], number)
    wait_for(lambda: is_restarting(server))
    assert "It had nothing to do" in reasons(server)[0][1] or number == signal.SIGSTOP
    wait_for(lambda: ready(server))
    assert len(roster.pids) == 2

    # Scoring.
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(score, server, *([n, 2, 3] for n in range(300)))
        wait_for(lambda: server.service.scoring.counts.sequences > 3)
        os.kill(roster.pids[-1], number)
        assert code_of(asked.result()) == (503, "teacher_died")
    wait_for(lambda: ready(server))
    assert score(server, [1, 2, 3]).status_code == 200

    # Loading to write, then writing.
    roster.hold("generate")
    generation = generated(server)
    os.kill(roster.held_process("generate"), number)
    wait_for(lambda: is_restarting(server))
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 30)
    os.kill(roster.pids[-1], number)

    # Loading to capture what was written.
    roster.hold("capture")
    os.kill(roster.held_process("capture"), number)

    # Loading for hints.
    roster.hold("hints")
    hinted = finish(server, generation, documents)
    os.kill(roster.held_process("hints"), number)
    assert server.finish(hinted)["status"] == "completed"

    teacher = server.service.teacher
    # Idle, scoring, writing; the others were loads.
    if number == signal.SIGKILL:
        assert (teacher.deaths, teacher.restarts) == (3, 6)
    else:  # on a busy machine a process that imports says nothing for HANG_SECONDS, too, and is taken for a stopped one
        assert teacher.deaths >= 3
        assert teacher.restarts >= 6
    for cask in ("written", "hinted"):
        shards = files_of(tmp_path / "casks" / cask / "shards")
        assert shards == files_of(tmp_path / "calm" / "casks" / cask / "shards")
    assert Cask.open(tmp_path / "casks" / "hinted").has_hints
    keys = [line.split("\t")[2] for line in log.read_text().splitlines()]
    assert len(set(keys)) == 120
    assert len(keys) <= 120 + FakeGenerator.in_flight, "what was answered is not asked again"
    assert not any(map(is_alive, roster.pids[:-1]))


def test_others_are_served_while_a_teacher_cannot_be_loaded(serve, tmp_path, documents):
    """Out of memory three times in a row: the pauses grow, the state says so, others go first."""
    roster = ProcessRoster(folder=tmp_path, load_faults={"large": ["memory", "killed", "memory"]})
    server = serve(roster=roster, engine_backoff_seconds=0.5)
    wait_for(lambda: ready(server))
    corpus = server.upload(documents)
    large = server.submit(corpus, cask="large", teacher="large")["id"]
    wait_for(lambda: (server.get(large)["waiting"] or {}).get("code") == "teacher_unavailable")
    assert "Restart" in server.get(large)["waiting"]["message"]
    small = server.submit(corpus, cask="small", teacher="small")["id"]
    teachers = {each["name"]: each for each in server.client.get("/v1/teachers").json()["data"]}
    assert teachers["large"]["state"] in ("restarting", "switching")
    assert server.finish(small)["status"] == "completed"
    assert score(server, [1, 2, 3], teacher="small").status_code == 200
    assert server.finish(large)["status"] == "completed"
    assert [name for name, _ in roster.loads].count("large") == 4
    assert server.service.teacher.deaths == 0
    finished = [server.service.extractions.get(each).timestamps["completed"] for each in (small, large)]
    assert finished[0] < finished[1]
    assert Cask.open(tmp_path / "casks" / "large").manifest.teacher == roster.identity("large")


def test_one_whose_files_are_gone_is_waited_for(serve, tmp_path, documents):
    """More often than a teacher may die; the service stays, says so, and goes on with what is put back."""
    roster = ProcessRoster(names=("small",), folder=tmp_path)
    server = serve(roster=roster, engine_restarts=2)
    wait_for(lambda: ready(server))
    roster.faults["small"] = "the folder is gone"
    os.kill(roster.pids[-1], signal.SIGKILL)
    wait_for(lambda: len(roster.loads) > 5)
    [(code, message)] = reasons(server)
    assert code == "teacher_restarting"
    assert "small cannot be loaded again: the folder is gone" in message
    job = server.submit(server.upload(documents))["id"]
    wait_for(lambda: (server.get(job)["waiting"] or {}).get("code") == "teacher_unavailable")
    assert code_of(score(server, [1, 2])) == (503, "teacher_restarting")
    del roster.faults["small"]
    assert server.finish(job)["status"] == "completed"
    assert server.service.teacher.deaths == 1
