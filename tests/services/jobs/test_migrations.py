"""Job databases of other versions or programs, and damaged ones: brought up to date, or refused and left alone."""

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from logitcask_schemas.api.generation import GenerationRequest
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.jobs.database.chunks import ChunkStore
from logitcask_services.jobs.database.database import Database, DatabaseError
from logitcask_services.jobs.database.extractions import ExtractionStore
from logitcask_services.jobs.database.generations import GenerationStore
from logitcask_services.jobs.database.log import JobLog
from logitcask_services.jobs.database.queue import JobQueue
from logitcask_services.jobs.database.tables import SCHEMA_VERSION, Base
from logitcask_services.jobs.extraction import (
    IdempotencyKey,
)
from logitcask_services.jobs.failure_files import FailureFiles


def chunk_store(store):
    return ChunkStore(store._database, lambda extraction_id: None)


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
