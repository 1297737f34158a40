"""What keeps work from being stored now: readiness tells it, and the work waits for its end.

Folders and database are asked whenever somebody wants to know. A store of casks is asked now and then by a thread:
asking takes long when nobody answers, so whoever wants to know whether the service is ready does not ask.
"""

import logging
import os
import threading
from pathlib import Path
from typing import Final

from sqlalchemy.exc import OperationalError

from logitcask_schemas.cask.storage import files
from logitcask_schemas.errors import LogitcaskError
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.waiting import Reason, passing_fault, unforeseen

logger = logging.getLogger(__name__)
SECONDS: Final = 30.0
"""Between two questions to a store, each of two requests."""


class StorageWatch(threading.Thread):
    """Asks the store of the casks until the service stops; ends at once where casks lie in a folder.

    Args:
        context: whose storage it is.
        seconds: between two questions.
    """

    def __init__(self, context: JobContext, seconds: float = SECONDS) -> None:
        super().__init__(name="logitcask-storage-watch", daemon=True)
        self._context = context
        self._casks = context.folders.casks
        self._seconds = seconds
        self._store_fault: Reason | None = None

    def run(self) -> None:
        """See the class. The store was asked when the service was made."""
        if self._casks.disks:
            return
        while not self._context.signals.stopping.wait(self._seconds):
            self.ask_store()

    def ask_store(self) -> None:
        """Ask the store of the casks once whether it would take a shard."""
        try:
            self._casks.require_usable()
        except (LogitcaskError, OSError) as error:
            fault = passing_fault(error) or unforeseen(error)
            if self._store_fault is None:
                logger.warning("%s", fault[1])
            self._store_fault = fault
        else:
            if self._store_fault is not None:
                logger.info("%s takes casks again", self._casks.place)
            self._store_fault = None

    def fault(self) -> Reason | None:
        """Code and sentence of the first thing that takes no work now; None where all do."""
        disks = (*self._casks.disks, self._context.folders.state)
        faults = (self._fault_of_database(), self._store_fault, *map(self._fault_of_folder, disks))
        return next(filter(None, faults), None)

    def _fault_of_database(self) -> Reason | None:
        """Where what work commits would be lost."""
        try:
            self._context.database.require_in_place()
        except OperationalError as error:
            return passing_fault(error)
        return None

    def _fault_of_folder(self, folder: Path) -> Reason | None:
        """Where a folder cannot take what work writes."""
        try:
            read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
            free = files.free_bytes(folder)
        except OSError as error:
            return passing_fault(error)
        if read_only:
            return "read_only", f"the file system of {folder} is read-only"
        if not os.access(folder, os.W_OK | os.X_OK):
            return "permission_denied", f"the service may not write into {folder}"
        floor = self._context.settings.disk_floor_bytes
        return ("insufficient_storage", f"{free} bytes free, fewer than the floor of {floor}") if free < floor else None
