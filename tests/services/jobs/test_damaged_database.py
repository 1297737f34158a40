"""A damaged job database: told in words at a start and while the service runs; a copy that is put back goes on."""

import shutil
import sqlite3

import pytest
from sqlalchemy.exc import DatabaseError as SQLError
from sqlalchemy.exc import IntegrityError

from logitcask_schemas.cask import Cask
from logitcask_services.jobs.database.database import DatabaseError
from logitcask_services.jobs.waiting import damage_of_database
from tests.support.services.service_harness import wait_for


def malformed(code=sqlite3.SQLITE_CORRUPT):
    cause = sqlite3.DatabaseError("database disk image is malformed")
    cause.sqlite_errorcode = code
    return SQLError(None, None, cause)


def damage(path):
    """Overwrite all but the header's page."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def test_a_copy_that_is_put_back_goes_on_and_nothing_is_lost(serve, documents, tmp_path):
    server = serve(fake={"seconds_per_document": 0.1, "in_flight": 2})
    job = server.submit(server.upload(documents))["id"]
    wait_for(lambda: server.get(job)["documents"]["captured"] > 0)
    server.stop()
    state = tmp_path / "state"
    shutil.copy(state / "jobs.sqlite3", tmp_path / "copy")
    server = serve(fake={"seconds_per_document": 0.1, "in_flight": 2})
    captured = server.get(job)["documents"]["captured"]
    wait_for(lambda: server.get(job)["documents"]["captured"] > captured)  # more than the copy knows of
    server.stop()
    damage(state / "jobs.sqlite3")
    with pytest.raises(DatabaseError, match=r"cannot be used as the job database.*Restore it from a copy"):
        serve()
    for file in state.glob("jobs.sqlite3*"):
        file.unlink()
    shutil.copy(tmp_path / "copy", state / "jobs.sqlite3")
    server = serve()
    done = server.finish(job)
    assert (done["status"], done["documents"]["captured"] + done["documents"]["present"]) == ("completed", 40)
    assert len(Cask.open(tmp_path / "casks" / "cask")) == 40


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT | 1 << 8])
def test_damage_is_told_with_what_to_do(code):
    for error in (malformed(code), malformed(code).orig):
        assert "restore jobs.sqlite3 from a copy" in (damage_of_database(error) or "")


def test_other_errors_are_no_damage():
    assert damage_of_database(malformed(sqlite3.SQLITE_FULL)) is None
    assert damage_of_database(IntegrityError(None, None, sqlite3.IntegrityError("UNIQUE"))) is None
    assert damage_of_database(ValueError("x")) is None


def test_damage_under_a_running_service_ends_it_in_words(serve, documents, monkeypatch):
    server = serve()
    corpus = server.upload(documents)

    def broken(*arguments, **options):
        raise malformed()

    monkeypatch.setattr(server.service.extractions, "page", broken)
    answer = server.client.get("/v1/extractions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert "restore jobs.sqlite3 from a copy" in answer.json()["detail"]
    ended = []
    monkeypatch.setattr(server.service, "on_crash", lambda: ended.append(server.service.crash))
    monkeypatch.setattr(server.service.extractions, "begin", broken)
    server.submit(corpus)
    wait_for(lambda: ended)
    assert "the job database is damaged" in ended[0]
