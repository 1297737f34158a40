"""The job store: recovery after a restart, cancelling, idempotency, one service per folder."""

import hashlib
import sqlite3
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from logitcask_schemas.api.generation import GenerationRequest
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.corpora.prepare import Prepared
from logitcask_services.corpora.uploads import StoredCorpus
from logitcask_services.jobs.database import queue
from logitcask_services.jobs.database.chunks import ChunkStore
from logitcask_services.jobs.database.corpora import CorpusRegistry
from logitcask_services.jobs.database.database import Database, DatabaseError
from logitcask_services.jobs.database.extractions import ExtractionStore
from logitcask_services.jobs.database.generations import GenerationStore
from logitcask_services.jobs.database.log import JobLog
from logitcask_services.jobs.database.queue import JobQueue
from logitcask_services.jobs.database.tables import SCHEMA_VERSION, Base, CorpusRow
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
    assert chunk_store(store).owner_of_shard("s") == row.number
    assert chunk_store(store).owner_of_shard("other") is None


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


def test_a_database_of_the_future_is_refused(tmp_path):
    database = Database(tmp_path)
    with database.write() as session:
        session.connection().exec_driver_sql("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(DatabaseError, match=f"schema version 99, this logitcask reads {SCHEMA_VERSION} and older"):
        Database(tmp_path)


def old_database(folder: Path, version: int) -> None:
    """A job database as an older version of logitcask left it."""
    with closing(sqlite3.connect(folder / "jobs.sqlite3")) as connection:
        connection.executescript((Path(__file__).parent / f"jobs-version-{version}.sql").read_text())


def test_a_database_of_version_1_is_brought_up_to_date(tmp_path):
    """Columns that came later are there with their defaults; what was stored stays."""
    old_database(tmp_path, 1)
    database = Database(tmp_path)
    store = ExtractionStore(database, lambda extraction_id: None)
    (row,) = store.page(status=None, after=None, limit=5)
    assert (row.id, row.status, row.documents) == ("extraction-1", "queued", 3)
    assert row.request == ExtractionRequest(corpus_id="corpus-1", cask="docs")
    assert chunk_store(store).pending_chunks("extraction-1")[0].tokens == 12
    require_tables_of_today(database)
    store.step("extraction-1", "in_progress")
    database.close()


def require_tables_of_today(database):
    with database.read() as session:
        assert session.connection().exec_driver_sql("PRAGMA user_version").scalar_one() == SCHEMA_VERSION
        assert session.connection().exec_driver_sql("PRAGMA foreign_key_check").all() == []
        for table in Base.metadata.sorted_tables:
            columns = {row[1] for row in session.connection().exec_driver_sql(f"PRAGMA table_info({table.name})")}
            assert columns == {column.name for column in table.columns}


def test_a_database_of_version_3_keeps_all_that_refers_to_its_extractions(tmp_path):
    """The table of extractions is that of all jobs now: events, failures, chunks, shards and keys follow it."""
    old_database(tmp_path, 3)
    database = Database(tmp_path)
    store, log = ExtractionStore(database, lambda extraction_id: None), JobLog(database, FailureFiles(tmp_path))
    (row,) = store.page(status=None, after=None, limit=5)
    assert (row.id, row.kind, row.status, row.captured_documents, row.bad_lines) == (
        "extraction-1",
        "capture",
        "in_progress",
        1,
        1,
    )
    assert row.request == ExtractionRequest(corpus_id="corpus-1", cask="docs", capture=CaptureSpec(mode="topk", k=5))
    assert [event.type for event in log.events(row, after=0)] == ["status", "prepared", "status", "status", "chunk"]
    assert [failure["code"] for page in log.failures(row) for failure in page] == ["not_json"]
    assert [chunk.number for chunk in chunk_store(store).pending_chunks(row.id)] == [1, 2]
    assert [shard.name for shard in chunk_store(store).shards(row.id)] == ["s"]
    require_tables_of_today(database)
    database.close()


def test_a_database_of_version_2_keeps_its_requests_and_keys(tmp_path):
    """Each field of a request had a column; now they are one document, and nothing of it has changed."""
    old_database(tmp_path, 2)
    database = Database(tmp_path)
    store = ExtractionStore(database, lambda extraction_id: None)
    older, second, first = store.page(status=None, after=None, limit=5)
    plain = ExtractionRequest(corpus_id=first.corpus_id, cask="docs", capture=CaptureSpec(tau=0.05))
    full = ExtractionRequest(
        corpus_id=first.corpus_id,
        cask="others",
        capture=CaptureSpec(
            mode="topk",
            k=8,
            pinned_ids=(3, 5),
            temperatures=(2.0,),
            logprob_codec="u8",
            sampler="multinomial",
            seed=2**62 + 1,
        ),
        max_length=1024,
        overflow="split",
        carrier="zarr",
        on_error="fail",
        metadata={"who": "Ünsal \"the\" 'quote' \U0001f600", "n": "1e5"},
    )
    assert (first.request, second.request) == (plain, full)
    assert older.request.capture.tau == 1e-9  # under the limits of its version
    assert (first.status, first.notes, first.documents) == ("queued", {"blank_line": 1}, 3)
    (failures,) = JobLog(database, FailureFiles(tmp_path)).failures(second)
    assert [(failure["line"], failure["code"]) for failure in failures] == [(2, "not_json")]
    require_tables_of_today(database)
    for request, name, row in ((plain, "first", first), (full, "second", second)):
        fingerprint = hashlib.sha256(request.canonical()).hexdigest()
        key = IdempotencyKey(scope="extractions anonymous", key=name, fingerprint=fingerprint)
        again, created = store.create(request, key)
        assert (again.id, created) == (row.id, False)
    new, _ = store.create(full, None)
    assert store.get(new.id).request == full
    database.close()


def test_a_database_of_version_4_keeps_the_order_of_its_jobs(tmp_path):
    """Priorities and places are new: all are equal, in the order in which they came, and keys still know them."""
    old_database(tmp_path, 4)
    database = Database(tmp_path)
    queue = JobQueue(database, lambda job_id: None)
    store, generations = ExtractionStore(database, lambda _: None), GenerationStore(database, lambda _: None)
    assert [(row.id, row.kind, row.status, row.priority, row.place) for row in queue.waiting()] == [
        ("extraction-1", "capture", "queued", 0, 1),
        ("generation-1", "generate", "queued", 0, 2),
        ("extraction-2", "capture", "validating", 0, 3),
    ]
    assert queue.paused_at() is None
    require_tables_of_today(database)
    request = store.get("extraction-1").request
    key = IdempotencyKey(
        scope="extractions anonymous", key="first", fingerprint=hashlib.sha256(request.canonical()).hexdigest()
    )
    assert store.create(request, key)[0].id == "extraction-1"
    asked = GenerationRequest(corpus_id=request.corpus_id, recipe="answer")
    key = IdempotencyKey(
        scope="generations anonymous", key="second", fingerprint=hashlib.sha256(asked.canonical()).hexdigest()
    )
    assert generations.create(generations.get("generation-1").request, key)[0].id == "generation-1"
    queue.move_before("extraction-2", None)
    new, _ = store.create(request, None)
    assert [row.id for row in queue.waiting()] == ["extraction-2", "extraction-1", "generation-1", new.id]
    database.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_migration_that_is_cut_short_changes_nothing(tmp_path, version):
    old_database(tmp_path, version)

    def dump():
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as connection:
            return list(connection.iterdump()), connection.execute("PRAGMA user_version").fetchone()

    before = dump()
    dropped = []

    def die_late(connection, cursor, statement, *_):
        dropped.append("DROP COLUMN" in statement)
        if sum(dropped) == 4:
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", die_late)
    try:
        with pytest.raises(KeyboardInterrupt):
            Database(tmp_path)
    finally:
        event.remove(Engine, "before_cursor_execute", die_late)
    assert dump() == before
    Database(tmp_path).close()


@pytest.mark.parametrize("content", [b"this is no database" * 100, None], ids=["text", "cut"])
def test_a_damaged_database_is_refused_with_advice(tmp_path, content):
    database = Database(tmp_path)
    database.close()
    path = tmp_path / "jobs.sqlite3"
    for leftover in tmp_path.glob("jobs.sqlite3-*"):
        leftover.unlink()
    whole = path.read_bytes()
    path.write_bytes(content if content is not None else whole[:2000] + b"\xff" * (len(whole) - 2000))
    with pytest.raises(DatabaseError, match="cannot be used as the job database"):
        Database(tmp_path)


@pytest.mark.parametrize("version", [0, 1, SCHEMA_VERSION, 99])
def test_a_database_of_another_program_is_refused_and_left_as_it_is(tmp_path, version):
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as other:
        other.execute("CREATE TABLE songs (title)")
        other.execute(f"PRAGMA user_version = {version}")
    before = (tmp_path / "jobs.sqlite3").read_bytes()
    with pytest.raises(DatabaseError, match=r"is the database of another program \(tables: songs\)"):
        Database(tmp_path)
    assert (tmp_path / "jobs.sqlite3").read_bytes() == before


def test_a_damaged_page_in_the_middle_is_noticed_at_the_start(tmp_path):
    Database(tmp_path).close()
    path = tmp_path / "jobs.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    with pytest.raises(DatabaseError, match=r"cannot be used as the job database.*Restore it from a copy"):
        Database(tmp_path)


@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_database_locked_at_the_start_is_not_called_damaged(tmp_path, monkeypatch, mode):
    monkeypatch.setattr("logitcask_services.jobs.database.database.BUSY_SECONDS", 0.1)
    Database(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)) as other:
        other.execute(f"BEGIN {mode}")
        with pytest.raises(DatabaseError, match=r"Another program holds it.*nothing is lost") as refused:
            Database(tmp_path)
        assert "move it away" not in str(refused.value)
        other.execute("ROLLBACK")
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
