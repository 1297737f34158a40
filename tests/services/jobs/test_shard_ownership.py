"""What a job counts as captured is what it published itself, whoever else fills the same cask, and whatever dies."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import document_id
from logitcask_services.jobs.chunk_publication import ShardLedger, publish_chunk
from logitcask_services.jobs.chunks import OpenChunk, capture_task
from logitcask_services.jobs.database.chunks import ChunkStore
from logitcask_services.jobs.executors.chunk_orders import ChunkDone
from logitcask_services.jobs.executors.local_pool import LocalPool
from logitcask_services.jobs.extraction import Chunk
from tests.support.services.corpus_captures import capture, files_of, prepare, some_documents
from tests.support.services.engine_fleets import EngineScript, fleet_teacher
from tests.support.services.fake_teacher import HANGS, FakeEngine, identity
from tests.support.services.service_harness import wait_for

ENGINES = 3


@pytest.fixture(params=["one engine", "many engines"])
def serve_any(request, serve):
    """A function that starts a server with one engine, or with many."""

    def start(**script):
        if request.param == "one engine":
            return serve(fake=script)
        loads = EngineScript(lambda number: script)
        return serve(load=lambda: fleet_teacher(loads, ENGINES))

    return start


def names_in(cask: Path) -> set[str]:
    return {entry.name for entry in Cask.open(cask).entries}


def owned_by(server, job) -> set[str]:
    return {row.name for row in server.service.chunks.shards(job["id"])}


def fail_before_counting(server, monkeypatch, cask: Path, documents, shards: int):
    """A job that published so many shards at least, and failed before it counted any."""
    commit = ChunkStore.commit_chunk

    def crash(*arguments):
        wait_for(lambda: len(list((cask / "shards").glob("*.json"))) >= shards)
        raise RuntimeError("crashed, as scripted")

    monkeypatch.setattr(ChunkStore, "commit_chunk", crash)
    job = server.submit(server.upload(documents))
    assert server.finish(job["id"])["status"] == "failed"
    wait_for(lambda: "working" not in server.service.teacher.in_memory.engine_states)  # they end what they publish
    monkeypatch.setattr(ChunkStore, "commit_chunk", commit)
    return job


def test_what_a_stranger_published_meanwhile_stays_the_strangers(serve_any, tmp_path, monkeypatch):
    """The same corpus in the same chunks gives shards of the same bytes and names: they tell nothing."""
    documents, cask = some_documents(90, repeated=9), tmp_path / "casks/cask"
    server = serve_any()
    job = fail_before_counting(server, monkeypatch, cask, documents, 1)
    published, safe = names_in(cask), len(Cask.open(cask))
    assert 0 < safe < 90
    stranger = capture(prepare(tmp_path / "stranger", documents), cask)
    assert stranger.documents == 90 - safe
    server.client.post(f"/v1/extractions/{job['id']}/resume").raise_for_status()
    wait_for(lambda: server.get(job["id"])["status"] == "completed")
    counts = server.get(job["id"])["documents"]
    assert (counts["captured"], counts["present"], counts["failed"]) == (safe, 99 - safe, 0)
    assert owned_by(server, job) == published
    capture(prepare(tmp_path / "alone", documents), tmp_path / "whole")
    assert files_of(cask) == files_of(tmp_path / "whole")


def test_shards_are_the_jobs_though_another_cask_has_the_same(serve_any, tmp_path, monkeypatch):
    """They have the same names there, and had them in a cask of this name that was deleted."""
    documents, cask = some_documents(90, repeated=0), tmp_path / "casks/cask"
    server = serve_any()
    corpus = server.upload(documents)
    earlier = [server.finish(server.submit(corpus, name)["id"]) for name in ("another", "cask")]
    assert [job["documents"]["captured"] for job in earlier] == [90, 90]
    shutil.rmtree(cask)
    job = fail_before_counting(server, monkeypatch, cask, documents, 1)
    published = names_in(cask)
    assert published <= names_in(tmp_path / "casks/another")
    server.client.post(f"/v1/extractions/{job['id']}/resume").raise_for_status()
    wait_for(lambda: server.get(job["id"])["status"] == "completed")
    counts = server.get(job["id"])["documents"]
    assert (counts["captured"], counts["present"]) == (90, 0)
    assert owned_by(server, job) == names_in(cask) >= published


def test_who_is_overtaken_has_captured_nothing(serve_any, tmp_path, monkeypatch):
    """A stranger publishes each second shard of the job just before it does, and a document of each other one."""
    documents, cask, calls = some_documents(60, repeated=6), tmp_path / "casks/cask", list[int]()
    publish, strangers = CaskWriter.publish, set[bytes]()

    def overtaken(self, captured, **words):
        calls.append(len(captured))
        theirs = captured if len(calls) % 2 else captured[:1]
        stranger = CaskWriter.create(cask, teacher=identity(), capture=CaptureSpec(), version=2)
        if publish(stranger, theirs) is not None:
            strangers.update(document.id for document in theirs)
        return publish(self, captured, **words)

    monkeypatch.setattr(CaskWriter, "publish", overtaken)
    server = serve_any()
    job = server.submit(server.upload(documents))
    counts = server.finish(job["id"])["documents"]
    assert 20 < len(strangers) < 60
    assert (counts["captured"], counts["present"], counts["failed"]) == (60 - len(strangers), 6 + len(strangers), 0)
    assert len(Cask.open(cask)) == 60
    mine = set[bytes]()
    opened = Cask.open(cask)
    for entry in opened.entries:
        if entry.name in owned_by(server, job):
            mine.update(shard_ids(cask, entry.name))
    assert mine == {identity.tobytes() for identity in opened.document_ids()} - strangers


def shard_ids(cask: Path, name: str) -> set[bytes]:
    writer = CaskWriter.create(cask, teacher=identity(), capture=CaptureSpec(), version=2)
    every = [document.tobytes() for document in Cask.open(cask).document_ids()]
    return next(ids for entry, ids in writer.shards_with(every) if entry.name == name)


def test_words_that_were_lost_are_found_in_the_ledger_when_a_job_is_cancelled(serve, tmp_path, monkeypatch):
    """Workers that publish and die before they say so: what the job published counts, as nobody asks again."""
    documents, cask = some_documents(90, repeated=9), tmp_path / "casks/cask"
    events, lost = LocalPool.events, list[int]()

    def without_the_last_words(self, seconds):
        heard = events(self, seconds)
        lost.extend(event.number for _, event in heard if isinstance(event, ChunkDone) and event.number >= ENGINES)
        return [(at, event) for at, event in heard if not (isinstance(event, ChunkDone) and event.number >= ENGINES)]

    monkeypatch.setattr(LocalPool, "events", without_the_last_words)
    server = serve(load=lambda: fleet_teacher(EngineScript(), ENGINES))
    job = server.submit(server.upload(documents))
    wait_for(lambda: len(lost) >= ENGINES)
    server.client.post(f"/v1/extractions/{job['id']}/cancel").raise_for_status()
    done = server.finish(job["id"])
    assert done["status"] == "cancelled"
    assert done["documents"]["captured"] == len(Cask.open(cask))
    assert owned_by(server, job) == names_in(cask)
    assert not server.service.folders.ledger(job["id"]).exists(), "what is counted is the database's"


def test_a_cancelled_job_counts_chunks_that_wait_for_others(serve, tmp_path):
    """Chunks that repeat documents of one which is still open are published, and counted without these."""
    hang = tmp_path / "hang"
    hang.touch()
    documents = some_documents(60, repeated=0)
    documents[0] = {"input_ids": [1, HANGS, 3]}
    documents += [documents[1], *({"input_ids": [7, 8, number]} for number in range(20))]
    cask = tmp_path / "casks/cask"
    loads = EngineScript(lambda number: {"hang_file": hang})
    server = serve(load=lambda: fleet_teacher(loads, ENGINES))
    job = server.submit(server.upload(documents))
    last = document_id(np.array(documents[-1]["input_ids"], dtype=np.uint32))
    wait_for(lambda: (cask / "cask.json").exists() and Cask.open(cask).find(last) is not None)
    server.client.post(f"/v1/extractions/{job['id']}/cancel").raise_for_status()
    hang.unlink()
    done = server.finish(job["id"])
    assert done["status"] == "cancelled"
    assert done["documents"]["captured"] == len(Cask.open(cask))
    # What becomes of the one that is repeated nobody knows, unless the first chunk was ready before it was dropped.
    first = document_id(np.array([1, HANGS, 3], dtype=np.uint32))
    is_known = Cask.open(cask).find(first) is not None
    assert (done["documents"]["present"], done["documents"]["failed"]) == (int(is_known), 0)
    assert owned_by(server, job) == names_in(cask)


@pytest.fixture
def open_chunk(tmp_path):
    """A writer of a new cask, the tokens of a corpus, and its first chunk of five documents, captured."""
    prepared = prepare(tmp_path / "corpus", some_documents(5, repeated=0))
    tokens = prepared.tokens
    results = FakeEngine().capture([capture_task(tokens, number) for number in range(5)], CaptureSpec())
    documents: dict[Any, Any] = {result.key: result.document for result in results}
    entry = OpenChunk(chunk=Chunk(number=0, first_document=0, documents=5, tokens=0), documents=documents)
    create = partial(CaskWriter.create, tmp_path / "cask", teacher=identity(), capture=CaptureSpec(), version=2)
    return create, tokens, entry


def test_a_chunk_alone_in_its_cask_is_published_whole(open_chunk, tmp_path):
    create, tokens, entry = open_chunk
    ledger = ShardLedger(tmp_path / "ledger")
    publication = publish_chunk(entry, tokens, create(), note=ledger.note, attempt=lambda work: work())
    assert publication.documents == [0, 1, 2, 3, 4]
    assert publication.tokens == sum(len(tokens.tokens(number)) for number in range(5))
    assert publication.overtaken == []
    assert ledger.names() == names_in(tmp_path / "cask") == {publication.shard.name}


@pytest.mark.parametrize(("theirs", "mine"), [([1, 3], [0, 2, 4]), ([0, 1, 2, 3, 4], [])])
def test_documents_of_a_stranger_are_left_to_him(open_chunk, tmp_path, theirs, mine):
    create, tokens, entry = open_chunk
    writer, ledger = create(), ShardLedger(tmp_path / "ledger")
    stranger = create().publish([entry.documents[number] for number in theirs])
    publication = publish_chunk(entry, tokens, writer, note=ledger.note, attempt=lambda work: work())
    assert (publication.documents, publication.overtaken) == (mine, theirs)
    assert (publication.shard is None) == (not mine)
    assert ledger.names() == names_in(tmp_path / "cask") - {stranger.name}


def test_a_try_whose_answer_was_lost_is_in_the_ledger(open_chunk, tmp_path):
    create, tokens, entry = open_chunk
    ledger = ShardLedger(tmp_path / "ledger")
    publication = publish_chunk(entry, tokens, create(), note=ledger.note, attempt=lambda work: work() and work())
    assert (publication.shard, publication.overtaken) == (None, [0, 1, 2, 3, 4])
    assert ledger.names() == names_in(tmp_path / "cask")


def test_what_cannot_be_written_down_is_not_published(open_chunk, tmp_path):
    create, tokens, entry = open_chunk

    def full(name: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        publish_chunk(entry, tokens, create(), note=full, attempt=lambda work: work())
    assert len(Cask.open(tmp_path / "cask")) == 0
    suffixes = {carrier.suffix for carrier in CARRIERS.values()}
    assert not [path for path in (tmp_path / "cask/shards").iterdir() if path.suffix in suffixes], "the disk is full"


def test_a_ledger_is_durable_though_its_first_name_was_not(tmp_path, monkeypatch):
    """Folders are synced with the first name that is written, not with the first that is tried."""
    folder, synced, fsync = tmp_path / "jobs" / "ledger", [], os.fsync
    monkeypatch.setattr(LocalFiles, "sync_directory", lambda self, path: synced.append(path))
    ledger = ShardLedger(folder)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ledger.note("a" * 32)
    monkeypatch.setattr(os, "fsync", fsync)
    assert synced == []
    for name in ("b" * 32, "c" * 32):
        ledger.note(name)
    assert synced == [folder, folder.parent]


def test_a_ledger_has_many_writers_and_survives_half_a_line(tmp_path):
    folder = tmp_path / "jobs" / "ledger"
    assert ShardLedger(folder).names() == set()
    one, other = ShardLedger(folder), ShardLedger(folder)
    for name in ("a" * 32, "b" * 32):
        one.note(name)
    other.note("c" * 32)
    (torn,) = [path for path in folder.iterdir() if "c" * 32 in path.read_text()]
    os.truncate(torn, torn.stat().st_size - 3)
    other.note("d" * 32)
    names = ShardLedger(folder).names()
    assert names >= {"a" * 32, "b" * 32, "d" * 32}
    assert "c" * 32 not in names, "nothing was published yet when it was being written"
