"""The job database when it is locked, moved away, migrated in part or lost: nothing else is, and it is told."""

import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from logitcask_services.jobs.database.database import Database
from logitcask_services.service import Service
from tests.support.services.fake_teacher import fake_teacher
from tests.support.services.service_harness import cask_of, wait_for


def test_a_database_that_another_program_locks_ends_nothing(serve, documents, tmp_path, monkeypatch):
    """Longer than the time that SQLite itself waits."""
    monkeypatch.setattr("logitcask_services.jobs.database.database.BUSY_SECONDS", 0.2)
    server = serve(fake={"seconds_per_document": 0.05, "in_flight": 1})
    started = server.submit(server.upload(documents))
    wait_for(lambda: server.get(started["id"])["documents"]["captured"] > 0)
    script = (
        "import sqlite3, sys, time\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)\n"
        "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); time.sleep(2); c.execute('ROLLBACK')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "state" / "jobs.sqlite3")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        assert other.wait(30) == 0
    assert server.finish(started["id"])["status"] == "completed"
    assert server.service.crash is None
    assert len(cask_of(tmp_path)) == 40


def test_the_migration_is_one_transaction(tmp_path):
    """A database whose migration is cut short is still of the old version."""
    Database(tmp_path).close()
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as old:
        old.execute("PRAGMA user_version = 1")
        old.execute("ALTER TABLE corpora DROP COLUMN name")
    Database(tmp_path).close()
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as new:
        assert "name" in {row[1] for row in new.execute("PRAGMA table_info(corpora)")}


def test_a_job_database_that_is_moved_away_is_noticed_and_waited_for(serve, documents, tmp_path, caplog):
    """Nothing is committed into a file that the next start would not find; put back, everything goes on."""
    server = serve(fake={"seconds_per_document": 0.05, "in_flight": 1})
    job = server.submit(server.upload(documents))["id"]
    wait_for(lambda: server.get(job)["documents"]["captured"] > 0)
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in state.glob("jobs.sqlite3*"):
        file.rename(elsewhere / file.name)
    ready = server.client.get("/health/ready")
    (reason,) = ready.json()["reasons"]
    assert (ready.status_code, reason["code"]) == (503, "database_moved")
    assert "jobs.sqlite3 is not the file that this service opened" in reason["message"]
    assert "begins with an empty list; casks keep what they hold" in reason["message"]

    def committed():
        with closing(sqlite3.connect(elsewhere / "jobs.sqlite3")) as connection:
            return connection.execute("SELECT count(*) FROM chunks WHERE done").fetchone()[0]

    before = committed()
    refused = server.client.post("/v1/corpora", content=b"{}\n", headers={"Content-Type": "application/jsonl"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")
    wait_for(lambda: "waiting: the job database: " in caplog.text)
    time.sleep(0.5)  # time in which chunks would be committed
    assert committed() == before
    for file in elsewhere.glob("jobs.sqlite3*"):
        file.rename(state / file.name)
    assert server.finish(job)["documents"]["captured"] == len(documents)
    assert server.client.get("/health/ready").status_code == 200


def test_a_start_without_the_job_database_beside_corpora_is_told(make_settings, caplog):
    words = "holds corpora, but no job database"
    first = Service(make_settings(), lambda role: fake_teacher())
    first.start()
    with first.storage.receive() as upload:
        upload.write(b"{}\n")
        upload.finish()
    first.stop()
    tokens = first.folders.token_store("extraction-1")
    tokens.mkdir()
    assert words not in caplog.text
    for file in first.folders.state.glob("jobs.sqlite3*"):
        file.unlink()
    second = Service(make_settings(), lambda role: fake_teacher())
    second.start()
    second.stop()
    assert words in caplog.text
    assert tokens.exists()  # for the database, should it be put back
    third = Service(make_settings(), lambda role: fake_teacher())
    third.start()
    third.stop()
    assert not tokens.exists()
