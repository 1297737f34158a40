"""A service with many engines in processes of their own: engines and service are killed, stopped and told to end.

`LOGITCASK_TEAM_KILLS` sets how often something is killed at random (default 6).
"""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask
from tests.support.services.corpus_captures import files_of, some_documents
from tests.support.services.process_engines import engines_of, is_alive
from tests.support.services.server_process import ServerProcess
from tests.support.services.service_harness import jsonl, wait_for

KILLS = int(os.environ.get("LOGITCASK_TEAM_KILLS", "6"))
ENGINES = 3
DOCUMENTS = 600
ENDED = ("completed", "failed", "cancelled")
COUNTED = ("status", "request_counts", "documents", "lines", "usage")


def start(folder: Path, seconds_per_document: float = 0.02, **settings) -> ServerProcess:
    child = {"seconds_per_document": seconds_per_document, "log": str(folder / "log")}
    return ServerProcess(
        folder, {"fleet": ENGINES, "child": child, "engine_backoff_seconds": 0.05, **settings}, pause_before_commit=0.05
    )


def submit(server: ServerProcess, documents) -> str:
    corpus = server.client.post("/v1/corpora", content=jsonl(documents)).raise_for_status().json()
    body = {"corpus_id": corpus["id"], "cask": "cask"}
    return server.client.post("/v1/extractions", json=body).raise_for_status().json()["id"]


def has_given(folder: Path, documents: int, server: ServerProcess, job: str) -> bool:
    """Whether so many were given to engines, or none will be any more."""
    return len(given(folder)) >= documents or server.status(job)["status"] in ENDED


def all_gone(processes: list[int]) -> bool:
    return not any(map(is_alive, processes))


def finish(server: ServerProcess, job: str):
    wait_for(lambda: server.status(job)["status"] in ENDED, 120)
    return server.status(job)


@pytest.fixture(scope="module")
def corpus():
    return some_documents(DOCUMENTS)


@pytest.fixture(scope="module")
def calm(tmp_path_factory, corpus):
    """The job and the cask's files as one engine leaves them that nothing happens to."""
    folder = tmp_path_factory.mktemp("calm")
    server = ServerProcess(folder)
    job = finish(server, submit(server, corpus))
    assert (job["status"], server.end()) == ("completed", 0)
    return job, files_of(folder / "casks/cask")


def require_same(folder: Path, job, calm) -> None:
    for name in COUNTED:
        assert job[name] == calm[0][name], name
    assert files_of(folder / "casks/cask") == calm[1]


def given(folder: Path) -> list[str]:
    """Identities of the documents that engines were given, in order."""
    log = folder / "log"
    return [line.split()[2] for line in log.read_text().splitlines()] if log.exists() else []


def safe_now(folder: Path) -> tuple[set[str], int]:
    """Documents that are published, and how many have been given to engines so far."""
    before = len(given(folder))
    if not (folder / "casks/cask/cask.json").exists():
        return set(), before
    return {identity.tobytes().hex() for identity in Cask.open(folder / "casks/cask").document_ids()}, before


def test_killed_at_random(tmp_path, corpus, calm):
    """Engines and the service, in any order: the cask is that of a calm run, and nothing safe is captured again."""
    moments = random.Random()
    server = start(tmp_path)
    job = submit(server, corpus)
    safe, costs = list[tuple[set[str], int]](), 0
    while len(safe) < KILLS:
        target = len(given(tmp_path)) + moments.randrange(10, 60)
        wait_for(partial(has_given, tmp_path, target, server, job), 60)
        time.sleep(moments.uniform(0, 0.1))
        if server.status(job)["status"] in ENDED:
            break
        engines = engines_of(server.pid)
        if len(safe) % 3 == 2:
            server.kill()
            wait_for(partial(all_gone, engines))
            safe.append(safe_now(tmp_path))
            costs += ENGINES
            server = start(tmp_path)
        else:
            os.kill(moments.choice(engines), signal.SIGKILL)
            safe.append(safe_now(tmp_path))
            costs += 1
    done = finish(server, job)
    assert server.end() == 0
    assert len(safe) >= min(KILLS, 4), "the run ended before enough was killed"
    require_same(tmp_path, done, calm)
    all_given = given(tmp_path)
    for published, before in safe:
        again = published.intersection(all_given[before:])
        assert not again, f"{len(again)} documents were captured again after they were published"
    largest = 60
    assert len(all_given) - DOCUMENTS <= costs * 2 * largest, "more was captured again than what was open"
    print(f"\n{len(safe)} kills: {len(all_given) - DOCUMENTS} of {DOCUMENTS} documents were captured again")


def test_an_engine_that_hangs_costs_its_chunks_alone(tmp_path, corpus, calm):
    server = start(tmp_path, engine_hang_seconds=2.5)
    job = submit(server, corpus)
    wait_for(lambda: len(given(tmp_path)) >= 40)
    before = set(engines_of(server.pid))
    victim = before.pop()
    os.kill(victim, signal.SIGSTOP)
    done = finish(server, job)
    require_same(tmp_path, done, calm)
    assert not is_alive(victim)
    assert before <= set(engines_of(server.pid)), "the others were left alone"
    metrics = server.client.get("/metrics").text
    assert "logitcask_teacher_deaths_total 1.0" in metrics
    assert server.end() == 0


@pytest.mark.parametrize("hangs", [False, True], ids=["at work", "one hangs"])
def test_told_to_end(tmp_path, corpus, calm, hangs):
    """SIGTERM: all engines end with the service, and the next start goes on."""
    server = start(tmp_path)
    job = submit(server, corpus)
    wait_for(lambda: len(given(tmp_path)) >= 60)
    engines = engines_of(server.pid)
    assert len(engines) == ENGINES
    if hangs:
        os.kill(engines[0], signal.SIGSTOP)
    assert server.end() == 0
    assert not any(map(is_alive, engines))
    published, before = safe_now(tmp_path)
    server = start(tmp_path, seconds_per_document=0.0)
    require_same(tmp_path, finish(server, job), calm)
    assert server.end() == 0
    assert not published.intersection(given(tmp_path)[before:])
