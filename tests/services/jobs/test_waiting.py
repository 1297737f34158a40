"""Faults that pass by themselves: wait, say so, go on; never give up what was to be written."""

import errno
import sqlite3
import threading

import pytest
from sqlalchemy.exc import OperationalError

from logitcask_schemas.cask.storage import files
from logitcask_schemas.errors import (
    CaskCorruptionError,
    CaskLockedError,
    CaskNotFoundError,
    CaskReadError,
    CaskWriteError,
    IdentityMismatchError,
    StoreError,
)
from logitcask_services.jobs.waiting import (
    SetAsideError,
    StoppedWhileWaitingError,
    Waiter,
    passing_fault,
    retry_until_written,
)


def database_error(code, text):
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return OperationalError("COMMIT", {}, error)


def full_database():
    return database_error(sqlite3.SQLITE_FULL, "database or disk is full")


def keeper(tmp_path, said, ends=lambda seconds: False, floor=0):
    return Waiter((tmp_path,), floor=floor, poll_seconds=0, ends=ends, set_waiting=said.append)


PASSING = {
    "insufficient_storage": [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Quota exceeded"),
        CaskWriteError("the disk took no more", errno.ENOSPC),
        full_database(),
    ],
    "read_only": [OSError(errno.EROFS, "Read-only"), database_error(sqlite3.SQLITE_READONLY, "readonly database")],
    "permission_denied": [PermissionError(errno.EACCES, "denied"), OSError(errno.EPERM, "not permitted")],
    "too_many_open_files": [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "in the system")],
    "files_missing": [
        FileNotFoundError(errno.ENOENT, "gone"),
        CaskNotFoundError("no cask"),
        OSError(errno.ENOTDIR, ""),
    ],
    "store_unavailable": [StoreError("the object store failed")],
    "cask_locked": [CaskLockedError("someone writes")],
    "database_busy": [
        database_error(sqlite3.SQLITE_BUSY, "database is locked"),
        database_error(sqlite3.SQLITE_LOCKED, "table is locked"),
        database_error(sqlite3.SQLITE_BUSY | (2 << 8), "database is locked, extended code"),
    ],
    "database_unavailable": [
        database_error(sqlite3.SQLITE_IOERR | (4 << 8), "disk I/O error"),
        database_error(sqlite3.SQLITE_CANTOPEN, "unable to open database file"),
    ],
    "io_error": [
        OSError(errno.EIO, "broken"),
        OSError(errno.ESTALE, "Stale file handle"),
        CaskWriteError("the device reported an error", errno.EIO),
        CaskReadError("the device reported an error", errno.EIO),
    ],
}


@pytest.mark.parametrize(
    ("code", "error"), [(code, error) for code, errors in PASSING.items() for error in errors], ids=str
)
def test_waits_and_goes_on(tmp_path, code, error):
    said, faults = [], [error, error]

    def work():
        if faults:
            raise faults.pop()
        return "done"

    assert keeper(tmp_path, said).run(work) == "done"
    assert [reason and reason[0] for reason in said] == [code, code, None]
    assert "nothing is lost" in said[0][1]


@pytest.mark.parametrize(
    "error",
    [
        CaskCorruptionError("a flipped bit"),
        IdentityMismatchError("another teacher's"),
        ValueError("a bug"),
        database_error(sqlite3.SQLITE_CORRUPT, "malformed"),
        database_error(sqlite3.SQLITE_NOTADB, "file is not a database"),
        database_error(sqlite3.SQLITE_ERROR, "no such column"),
    ],
    ids=str,
)
def test_what_no_waiting_cures_is_raised(tmp_path, error):
    def work():
        raise error

    assert passing_fault(error) is None
    with pytest.raises(type(error)):
        keeper(tmp_path, []).run(work)


def test_advice_fits_the_reason(tmp_path):
    """A lock is not let go by freeing space."""
    for code, errors in PASSING.items():
        for error in errors:
            fault = passing_fault(error)
            assert fault is not None
            assert ("Free space" in fault[1]) == (code == "insufficient_storage")


def test_work_of_its_own_fault_gives_way_to_others(tmp_path):
    def work():
        raise CaskLockedError("someone writes")

    waiter = Waiter(
        (tmp_path,),
        floor=0,
        poll_seconds=0,
        ends=lambda seconds: False,
        set_waiting=lambda reason: None,
        gives_way=lambda seconds: True,
    )
    with pytest.raises(SetAsideError):
        waiter.run(work)
    assert waiter.set_aside is not None
    assert waiter.set_aside[0] == "cask_locked"


def test_pauses_grow_to_half_a_minute(tmp_path):
    pauses, faults = [], [OSError(errno.EIO, "broken")] * 12

    def work():
        if faults:
            raise faults.pop()

    def ends(seconds):
        pauses.append(seconds)
        return False

    Waiter((tmp_path,), floor=0, poll_seconds=0.5, ends=ends, set_waiting=lambda reason: None).run(work)
    assert pauses[:4] == [0.5, 1, 2, 4]
    assert pauses[-1] == 30


def test_floor(tmp_path, monkeypatch):
    free = iter([5, 5, 50])
    monkeypatch.setattr(files, "free_bytes", lambda folder: next(free))
    said = []
    assert keeper(tmp_path, said, floor=10).run(lambda: "done") == "done"
    assert said[0][0] == "insufficient_storage"
    assert "5 bytes are free" in said[0][1]
    assert "floor of 10" in said[0][1]


def test_called_off(tmp_path):
    def work():
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(StoppedWhileWaitingError):
        keeper(tmp_path, [], ends=lambda seconds: True).run(work)


def test_a_pause_that_cannot_be_noted(tmp_path):
    faults = [OSError(errno.ENOSPC, "full")]

    def set_waiting(reason):
        raise full_database()

    waiter = Waiter((tmp_path,), floor=0, poll_seconds=0, ends=lambda seconds: False, set_waiting=set_waiting)
    assert waiter.run(lambda: faults and (_ for _ in ()).throw(faults.pop())) == []


def test_a_transaction_is_repeated_until_it_is_written():
    class Stopping(threading.Event):
        def wait(self, timeout=None):
            return False

    faults = [full_database()]

    def work():
        if faults:
            raise faults.pop()
        return 1

    assert retry_until_written(work, poll_seconds=0, stopping=Stopping()) == 1
