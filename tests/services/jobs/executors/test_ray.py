"""Many teachers on a Ray cluster: killed at random, workers, driver or head, the cask is that of an undisturbed run.

`LOGITCASK_KILLS` sets how often each is killed (default 1: a cluster takes seconds to come up).
"""

import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="in the extra `ray`")

from logitcask_schemas.cask import Cask
from logitcask_services.jobs.executors import ray_head
from logitcask_services.jobs.executors.corpus_capture import CaptureStoppedError
from logitcask_services.jobs.executors.leases import CHUNKS_AHEAD
from logitcask_services.jobs.executors.ray_pool import RayOptions, RayPool, RayTeam
from logitcask_services.jobs.extraction import planned_chunks
from logitcask_services.jobs.loaded_teacher import Teacher
from tests.support.services.corpus_captures import (
    CHUNK_POSITIONS,
    capture,
    captures,
    drive,
    files_of,
    job_of,
    missing,
    prepare,
    some_documents,
)
from tests.support.services.fake_teacher import FakeEngine, FakeTokenizer
from tests.support.services.process_engines import is_alive
from tests.support.services.ray_cluster import RayCluster, dead_child_of
from tests.support.services.service_harness import wait_for

KILLS = int(os.environ.get("LOGITCASK_KILLS", "1"))
TEACHERS = 2
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.services.corpus_captures", "ray"])


@pytest.fixture(scope="module")
def cluster():
    # Its sockets lie in the folder, and their names may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="lc-ray-", dir="/tmp"))
    cluster = RayCluster(folder)
    cluster.start()
    yield cluster
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A prepared corpus, and the files of the cask that one teacher makes of it alone."""
    folder = tmp_path_factory.mktemp("corpus")
    prepared = prepare(folder, some_documents())
    capture(prepared, folder / "cask")
    return folder, prepared, files_of(folder / "cask")


class Driver:
    """A driver in a process of its own, and what its teachers were given."""

    def __init__(self, folder: Path, cask: Path, cluster: RayCluster) -> None:
        self.log = cask.with_name(f"{cask.name}.log")
        script = {"log": str(self.log), "seconds_per_document": 0.01}
        self._start = partial(FORKS.Process, target=drive, args=(folder, cask, cluster.address, script))
        self._output = folder / "driver.log"
        self.begin()

    def begin(self) -> None:
        self.process = self._start()
        self.process.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait_for_captures(self, count: int) -> None:
        """Until teachers were given so many documents more, or the driver ended."""
        target = len(captures(self.log)) + count
        wait_for(lambda: len(captures(self.log)) >= target or not self.process.is_alive(), 300)

    def end(self) -> None:
        self.process.join(300)
        assert self.process.exitcode == 0, self._output.read_text()


def require_whole(cask: Path, undisturbed, log: Path, safe: list[tuple[set[int], set[int]]]) -> None:
    """The cask is the undisturbed one, and nothing was captured again that was published when something was killed.

    Args:
        cask: what came of it.
        undisturbed: see the fixture.
        log: what teachers were given.
        safe: of each kill, the documents that were published and the processes that had been given any.
    """
    _, prepared, expected = undisturbed
    assert files_of(cask) == expected
    given = captures(log)
    for published, before in safe:
        again = [document for pid, document in given if pid not in before and document in published]
        assert not again, f"{len(again)} documents were captured again after they were published"
    chunks = planned_chunks(prepared.tokens.offsets_D1, None, None, CHUNK_POSITIONS)
    at_most = len(safe) * TEACHERS * CHUNKS_AHEAD * max(chunk.documents for chunk in chunks)
    assert len(given) - 300 <= at_most, "more was captured again than what was open"
    print(f"\n{len(safe)} kills: {len(given) - 300} of 300 documents were captured again (at most {at_most})")


def safe_now(prepared, cask: Path, log: Path) -> tuple[set[int], set[int]]:
    published = set[int]()
    if (cask / "cask.json").exists():
        ids = {identity.tobytes() for identity in Cask.open(cask).document_ids()}
        published = {at for at in range(prepared.tokens.num_documents) if prepared.tokens.document_id(at) in ids}
    return published, {pid for pid, _ in captures(log)}


def test_a_server_that_dies_while_a_cluster_starts_is_noticed(tmp_path):
    """`ray start` waits for it as long as for one that is slow."""
    (tmp_path / "raylet").symlink_to("/bin/true")
    waits = "import subprocess, sys, time; left = subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    started = psutil.Popen([sys.executable, "-c", waits, str(tmp_path / "raylet")])
    assert dead_child_of(started) == "raylet"
    assert not started.is_running()


def test_two_teachers_fill_one_cask(tmp_path, cluster, undisturbed):
    folder, prepared, expected = undisturbed
    driver = Driver(folder, tmp_path / "cask", cluster)
    driver.end()
    assert files_of(tmp_path / "cask") == expected
    given = captures(driver.log)
    assert sorted(document for _, document in given) == list(range(300)), "each document once"
    assert len({pid for pid, _ in given}) == TEACHERS
    assert not missing(prepared, tmp_path / "cask").chunks


def test_workers_that_are_killed(tmp_path, cluster, undisturbed):
    folder, prepared, _ = undisturbed
    driver, safe = Driver(folder, tmp_path / "cask", cluster), []
    for _ in range(KILLS):
        driver.wait_for_captures(8)
        time.sleep(random.uniform(0, 0.2))
        if not driver.process.is_alive():
            break
        victim = next(pid for pid, _ in reversed(captures(driver.log)) if is_alive(pid))
        os.kill(victim, signal.SIGKILL)
        published, _ = safe_now(prepared, tmp_path / "cask", driver.log)
        # The other one may be at work on what it publishes next: only what is published now is safe from all others.
        safe.append((published, {pid for pid, _ in captures(driver.log)}))
    driver.end()
    require_whole(tmp_path / "cask", undisturbed, driver.log, safe)


def test_a_driver_that_is_killed(tmp_path, cluster, undisturbed):
    folder, prepared, _ = undisturbed
    driver, safe = Driver(folder, tmp_path / "cask", cluster), []
    for _ in range(KILLS):
        driver.wait_for_captures(8)
        time.sleep(random.uniform(0, 0.2))
        driver.kill()
        safe.append(safe_now(prepared, tmp_path / "cask", driver.log))
        driver.begin()
    driver.end()
    require_whole(tmp_path / "cask", undisturbed, driver.log, safe)


def test_a_head_that_is_killed(tmp_path, cluster, undisturbed):
    folder, prepared, _ = undisturbed
    driver, safe = Driver(folder, tmp_path / "cask", cluster), []
    port = int(cluster.address.rpartition(":")[2])
    for _ in range(max(1, KILLS // 2)):
        driver.wait_for_captures(8)
        time.sleep(random.uniform(0, 0.2))
        cluster.kill()
        driver.kill()  # it would end by itself within a minute
        safe.append(safe_now(prepared, tmp_path / "cask", driver.log))
        cluster.start(port)
        driver.begin()
    driver.end()
    require_whole(tmp_path / "cask", undisturbed, driver.log, safe)


def test_killed_at_random(tmp_path, cluster, undisturbed):
    """Workers, driver and head in any order: `3 * KILLS` times."""
    folder, prepared, _ = undisturbed
    driver, safe = Driver(folder, tmp_path / "cask", cluster), []
    port, moments = int(cluster.address.rpartition(":")[2]), random.Random()
    for what in moments.sample(["worker", "worker", "driver", "driver", "head"] * KILLS, 3 * KILLS):
        driver.wait_for_captures(moments.randrange(2, 12))
        time.sleep(moments.uniform(0, 0.3))
        if what == "worker":
            alive = sorted({pid for pid, _ in captures(driver.log) if is_alive(pid)})
            if alive:
                os.kill(moments.choice(alive), signal.SIGKILL)
                safe.append(safe_now(prepared, tmp_path / "cask", driver.log))
            continue
        if what == "head":
            cluster.kill()
        driver.kill()
        safe.append(safe_now(prepared, tmp_path / "cask", driver.log))
        if what == "head":
            cluster.start(port)
        driver.begin()
    driver.end()
    require_whole(tmp_path / "cask", undisturbed, driver.log, safe)


@pytest.mark.parametrize("place", ["option", "environment"])
@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-port", f"127.0.0.1:{10**20}"])
def test_an_address_where_no_cluster_is(tmp_path, undisturbed, monkeypatch, place, address):
    """Ray itself would try for minutes, or end with an error of its own."""
    _, prepared, _ = undisturbed
    if place == "environment":
        monkeypatch.setenv("RAY_ADDRESS", address)
    job, option = job_of(prepared, tmp_path / "cask"), address if place == "option" else None
    with pytest.raises(CaptureStoppedError, match=f"no Ray cluster at {address}: .*name it as HOST:PORT"):
        RayPool(job, FakeEngine, RayOptions(address=option))


def test_a_cluster_that_asks_for_a_token(tmp_path, undisturbed, capfd):
    """As every one does whose head has the file of a token that Ray made for a cluster of its own earlier."""
    _, prepared, _ = undisturbed
    folder = Path(tempfile.mkdtemp(prefix="lc-ray-", dir="/tmp"))
    guarded = RayCluster(folder)
    guarded.start(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 32)
    try:
        with pytest.raises(CaptureStoppedError, match=f"{guarded.address} cannot be used: .*token is missing"):
            ray_head.require_answer(guarded.address)
        assert capfd.readouterr().err == "", "Ray warns of each trial"
        with pytest.raises(CaptureStoppedError, match=f"at {guarded.address} cannot be used: .*RAY_AUTH_MODE=token"):
            RayPool(job_of(prepared, tmp_path / "cask"), FakeEngine, RayOptions(address=guarded.address))
    finally:
        guarded.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_cluster_that_lets_us_in(cluster, capfd):
    ray_head.require_answer(cluster.address)
    assert capfd.readouterr() == ("", "")


def test_who_listens_and_never_answers_is_no_cluster(monkeypatch):
    """Such as another service's port; Ray itself would try for a quarter of an hour."""
    monkeypatch.setattr(ray_head, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(CaptureStoppedError, match=rf"{address} cannot be used: nothing .* in 0\.5 s.*6379"):
            ray_head.require_answer(address)


def test_an_ipv6_address_stands_in_brackets(monkeypatch):
    asked = list[tuple[str, int]]()

    def connect(place, timeout):
        asked.append(place)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    assert ray_head.require_listener("[::1]:6379")
    assert ray_head.require_listener("[fe80::1%eth0]:6379")
    assert asked == [("::1", 6379), ("fe80::1%eth0", 6379)]
    with pytest.raises(CaptureStoppedError, match=r"no Ray cluster at ::1:6379: .* in brackets, such as \[::1\]:6379"):
        ray_head.require_listener("::1:6379")


def test_a_service_captures_on_the_cluster(tmp_path, cluster, undisturbed, serve):
    """Behind `serve --executor ray`: a killed actor and a paused job; the counts are those of one engine."""
    folder, prepared, expected = undisturbed
    log = tmp_path / "log"
    team = RayTeam(
        partial(FakeEngine, log=log, seconds_per_document=0.02),
        RayOptions(address=cluster.address, num_cpus=0.5),
        TEACHERS,
    )
    server = serve(load=lambda: Teacher(engine=FakeEngine(), tokenizer=FakeTokenizer(), team=team))
    job = server.submit(server.upload((folder / "corpus.jsonl").read_bytes()))
    wait_for(lambda: len(captures(log)) >= 30, 120)
    os.kill(captures(log)[-1][0], signal.SIGKILL)
    wait_for(lambda: len(captures(log)) >= 120, 120)
    server.client.post(f"/v1/extractions/{job['id']}/pause").raise_for_status()
    wait_for(lambda: server.get(job["id"])["status"] == "paused", 60)
    published, _ = safe_now(prepared, tmp_path / "casks/cask", log)
    before = len(captures(log))
    server.client.post(f"/v1/extractions/{job['id']}/resume").raise_for_status()
    done = server.finish(job["id"], 300)
    assert files_of(tmp_path / "casks/cask") == expected
    assert (done["status"], done["documents"]["captured"], done["documents"]["present"]) == ("completed", 300, 30)
    shards = {row.name for row in server.service.chunks.shards(job["id"])}
    assert shards == {entry.name for entry in Cask.open(tmp_path / "casks/cask").entries}
    assert not published.intersection(document for _, document in captures(log)[before:])


def test_a_cancelled_job_counts_what_its_actors_published(tmp_path, cluster, undisturbed, serve):
    """Actors that are told to end say what they have published; callers were scored by the service's own engine."""
    folder, _, _ = undisturbed
    log, cask = tmp_path / "log", tmp_path / "casks/cask"
    options = RayOptions(address=cluster.address, num_cpus=0.5)
    team = RayTeam(partial(FakeEngine, log=log, seconds_per_document=0.01), options, TEACHERS)
    server = serve(load=lambda: Teacher(engine=FakeEngine(), tokenizer=FakeTokenizer(), team=team))
    job = server.submit(server.upload((folder / "corpus.jsonl").read_bytes()))
    wait_for(lambda: len(captures(log)) >= 60, 120)
    assert server.client.post("/v1/score", json={"input_ids": [[3, 4, 5]]}).status_code == 200
    server.client.post(f"/v1/extractions/{job['id']}/cancel").raise_for_status()
    done = server.finish(job["id"], 60)
    assert done["status"] == "cancelled"
    assert 0 < done["documents"]["captured"] == len(Cask.open(cask)) < 300
    assert {row.name for row in server.service.chunks.shards(job["id"])} == {
        entry.name for entry in Cask.open(cask).entries
    }
