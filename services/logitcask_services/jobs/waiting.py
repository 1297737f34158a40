"""Faults that pass by themselves: full and read-only disks, stores, locks, a busy database. Say so, wait, try again.

Nothing of a job is lost while it waits. What no waiting cures (a cask of another teacher, damaged files) is
raised at once.
"""

import errno
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from logitcask_schemas.cask.storage import files
from logitcask_schemas.errors import CaskLockedError, StoreError

logger = logging.getLogger(__name__)
T = TypeVar("T")
Reason = tuple[str, str]
"""Code and sentence."""
LONGEST_PAUSE: Final = 30.0
_LOOK_SECONDS: Final = 0.2
"""Between two looks whether a piece of work was called off."""
_ADVICE: Final = {
    "insufficient_storage": "Free space and the job goes on by itself",
    "read_only": "Make the file system writable and the job goes on by itself",
    "permission_denied": "Give the service write access and the job goes on by itself",
    "too_many_open_files": "It goes on by itself when descriptors are free; raise the limit (ulimit -n) if it stays so",
    "store_unavailable": "The job goes on by itself when the store answers and takes puts again, or cancel it",
    "cask_locked": "The job goes on by itself when that process lets the cask go",
    "database_busy": "The job goes on by itself when the other program lets the job database go",
    "database_unavailable": "The job goes on by itself when the job database can be used again",
    "database_moved": "Put it back (with its -wal and -shm files) and the job goes on by itself, or "
    "start the service anew, which then begins with an empty list; casks keep what they hold",
    "files_missing": "Put them back and the job goes on by itself, or cancel it",
    "io_error": "The job goes on by itself when the disk works again, or cancel it",
}
_CODES: Final = {
    **dict.fromkeys(files.NO_SPACE, "insufficient_storage"),
    errno.EROFS: "read_only",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EMFILE: "too_many_open_files",
    errno.ENFILE: "too_many_open_files",
    errno.ENOENT: "files_missing",
    errno.ENOTDIR: "files_missing",
}
_SQLITE_CODES: Final = {
    sqlite3.SQLITE_FULL: "insufficient_storage",
    sqlite3.SQLITE_BUSY: "database_busy",
    sqlite3.SQLITE_LOCKED: "database_busy",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_IOERR: "database_unavailable",
    sqlite3.SQLITE_CANTOPEN: "database_unavailable",
    sqlite3.SQLITE_PERM: "permission_denied",
    sqlite3.SQLITE_PROTOCOL: "database_busy",
    sqlite3.SQLITE_NOMEM: "database_unavailable",
}


class StoppedWhileWaitingError(Exception):
    """The work was called off while it waited; nothing of it is lost."""


class SetAsideError(StoppedWhileWaitingError):
    """The work waits for something that others do not need; they go first."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason[1])
        self.reason = reason


def passing_fault(error: BaseException) -> Reason | None:
    """Code and sentence of a fault that may pass by itself, with what to do; None of any other error."""
    match error:
        case CaskLockedError():
            code, text = "cask_locked", str(error)
        case StoreError():
            code, text = "store_unavailable", str(error)
        case PoolTimeoutError():
            code, text = "database_busy", f"the job database: {error}"
        case OperationalError(orig=sqlite3.OperationalError() as cause):
            return passing_fault(cause)
        case sqlite3.OperationalError():
            number = getattr(error, "sqlite_errorcode", 0)
            if number == sqlite3.SQLITE_READONLY_DBMOVED:
                return "database_moved", f"the job database: {error}. {_ADVICE['database_moved']}"
            if number & 0xFF not in _SQLITE_CODES:
                return None
            code, text = _SQLITE_CODES[number & 0xFF], f"the job database: {error}"
        case OSError():
            reason = error.errno if error.errno is not None else _errno_of(error)
            code, text = _CODES.get(reason or 0, "io_error"), str(error)
        case _:
            return None
    return code, f"{text.rstrip('.')}. {_ADVICE[code]}; nothing is lost"


def damage_of_database(error: BaseException) -> str | None:
    """What to do about a job database that SQLite finds damaged while it is open; None of any other error."""
    cause = error.orig if isinstance(error, DatabaseError) else error
    if getattr(cause, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return None
    return (
        f"the job database is damaged: {cause}. Stop the service, restore jobs.sqlite3 from a copy (without the -wal "
        "and -shm files of the damaged one) and start it: the list of jobs is then that of the copy, casks keep what "
        "they hold, and what is in them is not captured again"
    )


def unforeseen(error: Exception) -> Reason:
    """Code and sentence of an error that nobody foresaw; it is one extraction's until another has it too."""
    return "internal", f"unforeseen {type(error).__name__}: {str(error)[:500]}; the server's log has its place"


def disk_is_full(error: OperationalError) -> bool:
    """Whether SQLite could not commit for want of space."""
    return (passing_fault(error) or ("", ""))[0] == "insufficient_storage"


def _errno_of(error: OSError) -> int | None:
    """Of an error that was made without a number, by its class or its cause."""
    if isinstance(error, FileNotFoundError):
        return errno.ENOENT
    return error.__cause__.errno if isinstance(error.__cause__, OSError) else None


def retry_until_written(work: Callable[[], T], *, poll_seconds: float, stopping: threading.Event) -> T:
    """The result of a transaction, repeated while the database cannot be written. Raises StoppedWhileWaitingError."""
    pause = poll_seconds
    while True:
        try:
            return work()
        except (OperationalError, PoolTimeoutError) as error:
            if (reason := passing_fault(error)) is None:
                raise
            logger.warning("waiting: %s", reason[1])
        if stopping.wait(pause):
            raise StoppedWhileWaitingError
        pause = min(2 * pause, LONGEST_PAUSE)


class Schedule:
    """What was set aside, and when it is tried again: ever more rarely. For one thread."""

    def __init__(self, first_pause: float) -> None:
        self._first_pause = first_pause
        self._entries: dict[str, tuple[float, float]] = {}
        """Id -> time to try again (monotonic), and the pause before it."""

    def put(self, identity: str) -> None:
        """Set it aside, for twice as long as the last time."""
        last = self._entries.get(identity, (0.0, self._first_pause / 2))[1]
        pause = min(2 * last, LONGEST_PAUSE)
        self._entries[identity] = (time.monotonic() + pause, pause)

    def forget(self, identity: str) -> None:
        """It went on, or has ended."""
        self._entries.pop(identity, None)

    def is_due(self, identity: str) -> bool:
        """Whether it may be tried now."""
        return self._entries.get(identity, (0.0, 0.0))[0] <= time.monotonic()

    def seconds_to_next(self, max_seconds: float) -> float:
        """Until something falls due; at most `max_seconds`."""
        now = time.monotonic()
        return max(0.01, min([max_seconds, *(at - now for at, _ in self._entries.values() if at > now)]))


class Waiter:
    """Runs work on casks, disk and database; while a fault lasts, says so and tries again, ever more rarely."""

    def __init__(
        self,
        folders: tuple[Path, ...],
        *,
        floor: int,
        poll_seconds: float,
        ends: Callable[[float], bool],
        set_waiting: Callable[[Reason | None], None],
        gives_way: Callable[[float], bool] = lambda seconds: False,
    ) -> None:
        """Describe the work.

        Args:
            folders: file systems that must have room.
            floor: bytes that must be free there.
            poll_seconds: first pause; doubles up to `LONGEST_PAUSE`.
            ends: waits that many seconds; True when the work is called off.
            set_waiting: notes the reason, or that it is over.
            gives_way: whether others should go first after that many seconds of waiting.
        """
        self._folders = folders
        self._floor = floor
        self._poll = poll_seconds
        self._ends = ends
        self._set_waiting = set_waiting
        self._gives_way = gives_way
        self.set_aside: Reason | None = None
        """Why the work gave way, once it did."""

    def run(self, work: Callable[[], T], called_off: Callable[[], bool] | None = None) -> T:
        """The result of `work`, which must be safe to repeat.

        Args:
            work: what to do.
            called_off: whether nobody waits for this piece of work any more, while all else goes on.

        Raises StoppedWhileWaitingError, SetAsideError, and what `work` raises that does not pass by itself.
        """
        since: float | None = None
        pause = self._poll
        while True:
            try:
                reason = self.shortage()
                if reason is None:
                    result = work()
                    if since is not None:
                        self._say(None)
                    return result
            except (CaskLockedError, OSError, OperationalError, PoolTimeoutError) as error:
                if (reason := passing_fault(error)) is None:
                    raise
            self._say(reason)
            since = time.monotonic() if since is None else since
            if self._gives_way(time.monotonic() - since):
                self.set_aside = reason
                raise SetAsideError(reason)
            if self._ends_within(pause, called_off):
                raise StoppedWhileWaitingError
            pause = min(2 * pause, LONGEST_PAUSE)

    def _ends_within(self, seconds: float, called_off: Callable[[], bool] | None) -> bool:
        if called_off is None:
            return self._ends(seconds)
        until = time.monotonic() + seconds
        while not called_off():
            if (left := until - time.monotonic()) <= 0:
                return False
            if self._ends(min(left, _LOOK_SECONDS)):
                return True
        return True

    def shortage(self) -> Reason | None:
        """Code and sentence when a folder's file system is below the floor. Raises OSError where it is gone."""
        for folder in self._folders:
            if (free := files.free_bytes(folder)) < self._floor:
                text = f"{free} bytes are free where {folder} lies, fewer than the floor of {self._floor}"
                return "insufficient_storage", f"{text}. {_ADVICE['insufficient_storage']}; nothing is lost"
        return None

    def _say(self, reason: Reason | None) -> None:
        if reason:
            logger.warning("waiting: %s", reason[1])
        try:
            self._set_waiting(reason)
        except (OperationalError, PoolTimeoutError) as error:  # what it waits for may be the database; the log has it
            logger.warning("the wait could not be noted in the job database: %s", error)
