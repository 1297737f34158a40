"""The job store: recovery after a restart, cancelling, idempotency, one service per folder."""

import sqlite3
from contextlib import closing
from itertools import islice

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_services.corpora.prepare import Prepared
from logitcask_services.corpora.uploads import StoredCorpus
from logitcask_services.jobs.database import queue
from logitcask_services.jobs.database.chunks import ChunkStore
from logitcask_services.jobs.database.corpora import CorpusRegistry
from logitcask_services.jobs.database.database import Database, DatabaseError
from logitcask_services.jobs.database.extractions import ExtractionStore
from logitcask_services.jobs.database.log import JobLog
from logitcask_services.jobs.database.queue import JobQueue
from logitcask_services.jobs.database.removal import JobRemoval
from logitcask_services.jobs.database.tables import CorpusRow
from logitcask_services.jobs.extraction import (
    Chunk,
    ChunkOutcome,
    IdempotencyConflictError,
    IdempotencyKey,
    IllegalTransitionError,
    NotFoundError,
)
from logitcask_services.jobs.failure_files import FailureFiles


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "state")
    yield database
    database.close()


@pytest.fixture
def store(database):
    return ExtractionStore(database, lambda extraction_id: None)


def chunk_store(store):
    return ChunkStore(store._database, lambda extraction_id: None)


@pytest.fixture
def request_of(database):
    corpus, _ = CorpusRegistry(database).add(StoredCorpus(sha256="0" * 64, bytes=1, lines=1), None, None)
    return ExtractionRequest(corpus_id=corpus.id, cask="cask")


def queued(store, request_of):
    row, _ = store.create(request_of, None)
    chunks = [Chunk(number=number, first_document=number, documents=1, tokens=5) for number in range(3)]
    chunk_store(store).save_preparation(row.id, Prepared(documents=3, tokens=15), {"model": "a"}, chunks)
    return row


def test_the_queue_is_read_a_few_jobs_at_a_time(store, request_of, database, monkeypatch):
    """In order of priority and place over pages; whoever wants the first job reads one page."""
    monkeypatch.setattr(queue, "PAGE", 3)
    jobs = JobQueue(database, lambda job_id: None)
    rows = [queued(store, request_of) for _ in range(11)]
    for number, row in enumerate(rows):
        jobs.set_priority(row.id, number % 3)
    jobs.move_before(rows[9].id, rows[3].id)
    store.create(request_of, None)  # is validated first
    waiting = [row.id for row in jobs.waiting() if row.status == "queued"]
    assert [row.id for row in jobs.queued()] == waiting == [row.id for row in store.in_status("queued")]
    assert len(waiting) == 11
    reads = []

    def note(_connection, _cursor, statement, *_rest):
        if "FROM jobs" in statement:
            reads.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert next(jobs.queued()).id == waiting[0]
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(reads) == 1
    assert "LIMIT" in reads[0]
    assert [row.id for row in islice(jobs.queued(), 4)] == waiting[:4]


def test_restart_queues_what_ran_and_ends_what_was_being_cancelled(store, request_of, database, tmp_path):
    running, finalizing, cancelling, waiting = (queued(store, request_of) for _ in range(4))
    store.step(running.id, "in_progress")
    store.set_waiting(running.id, ("insufficient_storage", "full"))
    store.step(finalizing.id, "in_progress")
    store.step(finalizing.id, "finalizing")
    store.step(cancelling.id, "in_progress")
    store.cancel(cancelling.id)
    assert sorted(store.recover()) == sorted([running.id, finalizing.id, cancelling.id])
    assert {row.id: row.status for row in store.page(status=None, after=None, limit=9)} == {
        running.id: "queued",
        finalizing.id: "queued",
        cancelling.id: "cancelled",
        waiting.id: "queued",
    }
    assert store.get(running.id).waiting is None
    assert store.recover() == []
    messages = [
        event.message for event in JobLog(database, FailureFiles(tmp_path)).events(store.get(running.id), after=0)
    ]
    assert messages[-1] == "queued: the service restarted; the run goes on"


def test_a_chunk_counts_once(store, request_of):
    row = queued(store, request_of)
    store.step(row.id, "in_progress")
    chunk = chunk_store(store).pending_chunks(row.id)[0]
    outcome = ChunkOutcome(shards=[{"name": "s", "bytes": 100}], captured_documents=1, captured_tokens=5)
    chunk_store(store).commit_chunk(row.id, chunk, outcome)
    chunk_store(store).commit_chunk(row.id, chunk, outcome)
    row = store.get(row.id)
    assert (row.tokens_done, row.bytes_written, row.captured_documents) == (5, 100, 1)
    assert [chunk.number for chunk in chunk_store(store).pending_chunks(row.id)] == [1, 2]
    owner = chunk_store(store).owner_of_shard
    began, ended = min(row.timestamps.values()), max(row.timestamps.values())
    assert owner("s", row.request.cask, since=began) == row.number
    assert owner("other", row.request.cask, since=began) is None
    assert owner("s", "another cask", since=began) is None
    assert owner("s", row.request.cask, since=ended + 1) is None, "it was over before"


def test_cancel(store, request_of):
    row = queued(store, request_of)
    assert store.cancel(row.id).status == "cancelled"
    with pytest.raises(IllegalTransitionError, match="is cancelled and cannot become cancelling"):
        store.cancel(row.id)
    row, _ = store.create(request_of, None)
    assert store.cancel(row.id).status == "cancelling"
    assert store.cancel(row.id).status == "cancelling"


def test_a_cancel_wins_over_an_end(store, request_of):
    row = queued(store, request_of)
    store.step(row.id, "in_progress")
    store.cancel(row.id)
    assert store.finish(row.id, "failed", reason=("x", "y")).status == "cancelled"


def test_idempotency(store, request_of):
    def key(fingerprint, scope="a", name="k"):
        return IdempotencyKey(scope=scope, key=name, fingerprint=fingerprint)

    first, created = store.create(request_of, key("f"))
    again, created_again = store.create(request_of, key("f"))
    assert (created, created_again, again.id) == (True, False, first.id)
    with pytest.raises(IdempotencyConflictError, match=f"which made {first.id}; use a new key"):
        store.create(request_of, key("g"))
    other, created = store.create(request_of, key("g", scope="b"))
    assert created
    assert other.id != first.id


def test_unknown_ids(store):
    with pytest.raises(NotFoundError, match="no extraction 'x'"):
        store.get("x")


def test_one_service_per_folder(tmp_path):
    first = Database(tmp_path)
    with pytest.raises(DatabaseError, match="another logitcask service uses"):
        Database(tmp_path)
    first.close()
    Database(tmp_path).close()


def test_a_restart_forgets_what_queued_work_waited_for(store, request_of):
    """What is still so is noticed again."""
    row = queued(store, request_of)
    store.set_waiting(row.id, ("other_teacher", "its tokens are another teacher's"))
    assert store.waiting() == [("other_teacher", "its tokens are another teacher's", 1)]
    store.recover()
    assert store.get(row.id).waiting is None
    assert store.waiting() == []


def test_a_death_after_the_end_changes_no_end(store, request_of):
    """An extraction that was cancelled while its teacher hung stays cancelled when the teacher is killed."""
    row = queued(store, request_of)
    store.step(row.id, "in_progress")
    store.cancel(row.id)
    store.finish(row.id, "cancelled")
    assert chunk_store(store).record_death(row.id, [], "it hung").status == "cancelled"


def test_every_commit_is_on_the_disk(database):
    with database.read() as session:
        connection = session.connection()
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1


def moved(folder, elsewhere):
    elsewhere.mkdir(exist_ok=True)
    for file in folder.glob("jobs.sqlite3*"):
        file.rename(elsewhere / file.name)


@pytest.mark.parametrize("exchanged", [False, True])
def test_nothing_is_committed_into_a_file_that_lost_its_name(tmp_path, exchanged):
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    database = Database(state)
    registry = CorpusRegistry(database)
    first, _ = registry.add(StoredCorpus(sha256="1" * 64, bytes=1, lines=1), None, None)
    moved(state, elsewhere)
    if exchanged:
        with closing(sqlite3.connect(state / "jobs.sqlite3")) as other:
            other.execute("CREATE TABLE songs (title)")
    for _ in range(2):
        with pytest.raises(OperationalError, match=r"jobs\.sqlite3 is not the file that this service opened"):
            registry.add(StoredCorpus(sha256="2" * 64, bytes=1, lines=1), None, None)
    assert [corpus.id for corpus in registry.page(after=None, limit=9)] == [first.id]
    (state / "jobs.sqlite3").unlink(missing_ok=True)
    moved(elsewhere, state)
    second, _ = registry.add(StoredCorpus(sha256="2" * 64, bytes=1, lines=1), None, None)

    def moved_meanwhile():
        with database.write() as session:
            session.add(CorpusRow(id="corpus-3", sha256="3" * 64, bytes=1, lines=1, name=None, created_at=0.0))
            moved(state, elsewhere)

    with pytest.raises(OperationalError, match="not the file"):
        moved_meanwhile()
    database.close()
    moved(elsewhere, state)
    database = Database(state)
    rows = CorpusRegistry(database).page(after=None, limit=9)
    assert [row.id for row in rows] == [second.id, first.id]
    database.close()


def test_a_new_job_is_behind_all_also_where_the_newest_were_moved_and_deleted(store, request_of, database):
    queue = JobQueue(database, lambda job_id: None)
    first, second, *newest = (queued(store, request_of).id for _ in range(4))
    for job in newest:
        queue.move_before(job, None)
        store.cancel(job)
    for job in newest:
        JobRemoval(database).delete(job, "extraction")
    new = queued(store, request_of).id
    assert [row.id for row in queue.waiting()] == [first, second, new]
