"""Working on a disk that may fill up: wait until there is room, say so meanwhile, then go on."""

import errno
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import OperationalError

from logitcask_schemas.errors import CaskLockedError
from logitcask_services import files

logger = logging.getLogger(__name__)
T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)


def disk_is_full(error: OperationalError) -> bool:
    """Whether SQLite could not commit for want of space."""
    return isinstance(error.orig, sqlite3.OperationalError) and error.orig.sqlite_errorcode == sqlite3.SQLITE_FULL


def until_written(work: Callable[[], T], *, poll_seconds: float, stopping: threading.Event) -> T:
    """The result of a transaction, repeated while the database's disk is full. Raises EndedWhileWaitingError."""
    while True:
        try:
            return work()
        except OperationalError as error:
            if not disk_is_full(error):
                raise
            logger.warning("the job database's disk is full; waiting for space")
        if stopping.wait(poll_seconds):
            raise EndedWhileWaitingError


class EndedWhileWaitingError(Exception):
    """The work was called off while it waited for disk space; nothing of it is lost."""


class RoomKeeper:
    """Runs disk work; while there is no room, says so and tries again."""

    def __init__(
        self,
        folders: tuple[Path, ...],
        *,
        floor: int,
        poll_seconds: float,
        ends: Callable[[float], bool],
        set_waiting: Callable[[tuple[str, str] | None], None],
    ) -> None:
        self._folders = folders
        self._floor = floor
        self._poll = poll_seconds
        self._ends = ends
        self._set_waiting = set_waiting

    def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which must be safe to repeat. Raises EndedWhileWaitingError, and what `work` raises."""
        waited = False
        while True:
            reason = self.shortage()
            if reason is None:
                try:
                    result = work()
                except CaskLockedError as error:
                    reason = ("cask_locked", str(error))
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    reason = ("insufficient_storage", f"the disk is full: {error}")
                except OperationalError as error:
                    if not disk_is_full(error):
                        raise
                    reason = ("insufficient_storage", f"the disk of the job database is full: {error.orig}")
                else:
                    if waited:
                        self._say(None)
                    return result
            self._say(
                (
                    reason[0],
                    f"{reason[1].rstrip('.')}. Free space and the extraction goes on by itself; nothing is lost",
                )
            )
            waited = True
            if self._ends(self._poll):
                raise EndedWhileWaitingError

    def shortage(self) -> tuple[str, str] | None:
        """(code, message) when a folder's file system is below the floor."""
        for folder in self._folders:
            if (free := files.free_bytes(folder)) < self._floor:
                return (
                    "insufficient_storage",
                    f"{free} bytes are free where {folder} lies, fewer than the floor of {self._floor}",
                )
        return None

    def _say(self, reason: tuple[str, str] | None) -> None:
        if reason:
            logger.warning("paused: %s", reason[1])
        try:
            self._set_waiting(reason)
        except OperationalError as error:  # a full disk takes no note of being full; the log has it
            logger.warning("the pause could not be noted in the job database: %s", error.orig)
