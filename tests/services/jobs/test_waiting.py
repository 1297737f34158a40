"""A disk that is full: wait, say so, go on; never give up what was to be written."""

import errno
import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from logitcask_schemas.errors import CaskLockedError, CaskWriteError
from logitcask_services import files
from logitcask_services.jobs.room import EndedWhileWaitingError, RoomKeeper, until_written


def full_database():
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return OperationalError("COMMIT", {}, error)


def keeper(tmp_path, said, ends=lambda seconds: False, floor=0):
    return RoomKeeper((tmp_path,), floor=floor, poll_seconds=0, ends=ends, set_waiting=said.append)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Quota exceeded"),
        CaskWriteError("the disk took no more", errno.ENOSPC),
        CaskLockedError("someone writes"),
        full_database(),
    ],
)
def test_waits_and_goes_on(tmp_path, error):
    said, faults = [], [error, error]

    def work():
        if faults:
            raise faults.pop()
        return "done"

    assert keeper(tmp_path, said).run(work) == "done"
    assert [reason and reason[0] for reason in said] == [said[0][0]] * 2 + [None]
    assert "nothing is lost" in said[0][1]


def test_other_errors_are_not_waited_out(tmp_path):
    def work():
        raise OSError(errno.EIO, "broken disk")

    with pytest.raises(OSError, match="broken disk"):
        keeper(tmp_path, []).run(work)


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

    with pytest.raises(EndedWhileWaitingError):
        keeper(tmp_path, [], ends=lambda seconds: True).run(work)


def test_a_pause_that_cannot_be_noted(tmp_path):
    faults = [OSError(errno.ENOSPC, "full")]

    def set_waiting(reason):
        raise full_database()

    room = RoomKeeper((tmp_path,), floor=0, poll_seconds=0, ends=lambda seconds: False, set_waiting=set_waiting)
    assert room.run(lambda: faults and (_ for _ in ()).throw(faults.pop())) == []


def test_until_written():
    class Stopping:
        def wait(self, seconds):
            return False

    faults = [full_database()]

    def work():
        if faults:
            raise faults.pop()
        return 1

    assert until_written(work, poll_seconds=0, stopping=Stopping()) == 1
