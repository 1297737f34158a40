"""A cancelled job counts all that it published, also where nobody lived to count it before."""

import errno
import sqlite3
import threading

import pytest

from logitcask_schemas.cask import Cask
from logitcask_services.jobs.database.chunks import ChunkStore
from tests.support.services.corpus_captures import some_documents
from tests.support.services.engine_fleets import EngineScript, fleet_teacher
from tests.support.services.fake_teacher import fake_teacher
from tests.support.services.service_harness import wait_for

DOCUMENTS = some_documents(90, repeated=9)
LOADS = {"one engine": fake_teacher, "many engines": lambda: fleet_teacher(EngineScript(), 3)}


@pytest.fixture(params=sorted(LOADS))
def published(request, serve, monkeypatch):
    """A server with a job that has published shards and can count none while its disk is full."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ChunkStore, "commit_chunk", full)
        server = serve(load=LOADS[request.param])
        job = server.submit(server.upload(DOCUMENTS))["id"]
        wait_for(lambda: (server.get(job)["waiting"] or {}).get("code") == "insufficient_storage")
        assert server.get(job)["documents"]["captured"] == 0
        yield server, job


def require_counted(server, job, tmp_path):
    """All that the cask has is the cancelled job's."""
    done, opened = server.get(job), Cask.open(tmp_path / "casks/cask")
    assert done["status"] == "cancelled"
    assert done["documents"]["captured"] == len(opened) > 0
    assert done["usage"]["tokens_captured"] == done["usage"]["tokens_done"] == opened.num_tokens
    assert done["usage"]["bytes_written"] == opened.num_bytes
    shards = server.client.get(f"/v1/extractions/{job}/manifest").json()["shards"]
    assert {shard["name"] for shard in shards} == {entry.name for entry in opened.entries}
    assert not server.service.folders.ledger(job).exists()
    assert not server.service.folders.token_store(job).exists()


def test_cancelled_while_a_full_disk_keeps_it_from_counting(published, tmp_path):
    server, job = published
    server.client.post(f"/v1/extractions/{job}/cancel").raise_for_status()
    server.finish(job)
    require_counted(server, job, tmp_path)


def test_cancelled_while_it_rests_after_the_service_stopped(published, serve, tmp_path):
    server, job = published
    server.stop()
    hold = threading.Event()
    again = serve(load=lambda: hold.wait(30) and fake_teacher())
    answer = again.client.post(f"/v1/extractions/{job}/cancel").json()
    hold.set()
    assert answer["documents"]["captured"] == len(Cask.open(tmp_path / "casks/cask"))
    require_counted(again, job, tmp_path)


@pytest.mark.parametrize("status", ["cancelling", "cancelled"])
def test_cancelled_when_the_service_was_killed(published, serve, tmp_path, status):
    """Before its end was written down, or before its last shards were counted: the next start counts them."""
    server, job = published
    server.stop()
    with sqlite3.connect(tmp_path / "state/jobs.sqlite3") as database:
        database.execute("UPDATE jobs SET status = ? WHERE id = ?", (status, job))
    require_counted(serve(), job, tmp_path)
