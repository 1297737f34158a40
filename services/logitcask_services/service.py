"""The service without HTTP: folders, database, teacher, threads. The HTTP layer and the tests stand on this."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from logitcask_services import files
from logitcask_services.corpora.uploads import CorpusStorage
from logitcask_services.folders import ServiceFolders
from logitcask_services.jobs.context import JobContext, WorkSettings
from logitcask_services.jobs.database.corpora import CorpusRegistry
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.extractions import ExtractionStore
from logitcask_services.jobs.database.log import ExtractionLog
from logitcask_services.jobs.live import Heartbeat, LiveProgress, Signals
from logitcask_services.jobs.preparer import Claims, Preparer
from logitcask_services.jobs.teacher import Teacher, TeacherHost
from logitcask_services.jobs.waiting import Reason, passing_fault
from logitcask_services.jobs.watchdog import TEACHER_FAILED, Watchdog
from logitcask_services.jobs.worker import Worker
from logitcask_services.settings import ServiceSettings

logger = logging.getLogger(__name__)
JOIN_SECONDS = 8.0
FAILED = 1
"""Exit code of a service that cannot go on, its teacher aside (`watchdog.TEACHER_FAILED`)."""


class Service:
    """One running service. `start` once, `stop` once.

    Args:
        settings: Where and how.
        load: Loads the teacher; called in a thread of its own, again after each death.
    """

    def __init__(self, settings: ServiceSettings, load: Callable[[], Teacher]) -> None:
        self.settings = settings
        self.folders = ServiceFolders(settings.cask_root, settings.state_dir)
        self.database = Database(settings.state_dir)
        self.signals = Signals()
        self.storage = CorpusStorage(self.folders.corpora)
        self.corpora = CorpusRegistry(self.database)
        self.extractions = ExtractionStore(self.database, self.signals.changed)
        self.log = ExtractionLog(self.database)
        self.progress = LiveProgress()
        self.host = TeacherHost(
            load,
            restarts=settings.engine_restarts,
            backoff_seconds=settings.engine_backoff_seconds,
            stopping=self.signals.stopping,
            ready=lambda: self.signals.changed(""),
        )
        self.crash: str | None = None
        """Why the service must end, once it must."""
        self.exit_code = 0
        self.on_crash: Callable[[], None] | None = None
        context = JobContext(
            folders=self.folders,
            storage=self.storage,
            corpora=self.corpora,
            extractions=self.extractions,
            log=self.log,
            host=self.host,
            signals=self.signals,
            progress=self.progress,
            settings=WorkSettings(
                max_line_bytes=settings.max_line_bytes,
                disk_floor_bytes=settings.disk_floor_bytes,
                chunk_positions=settings.chunk_positions,
                pause_poll_seconds=settings.pause_poll_seconds,
                accept_teacher=settings.accept_teacher,
            ),
            crashed=self._crashed,
            heartbeat=Heartbeat(),
        )
        watchdog = Watchdog(
            context,
            hang_seconds=settings.engine_hang_seconds,
            cancel_seconds=settings.cancel_grace_seconds,
            load_seconds=settings.load_deadline_seconds,
        )
        claims = Claims()
        # A second one takes what is small only, so that large corpora do not hold up all others.
        self._threads = (
            Preparer(context, claims, lane="all"),
            Preparer(context, claims, lane="small"),
            Worker(context, watchdog),
            watchdog,
        )

    def start(self) -> None:
        """Clean up after an earlier crash, put interrupted extractions back into the queue, start the threads."""
        self.storage.sweep()
        for extraction_id in self.extractions.recover():
            logger.info("extraction %s goes on after a restart", extraction_id)
        self.folders.sweep(keep=self.extractions.keeps_tokens())
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads and close the database. A teacher that is deep in its work is left to the process's end."""
        self.signals.stop()
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            logger.warning("the teacher did not stop within %g s; the process ends without it", JOIN_SECONDS)
            return
        self.database.close()

    def not_ready(self) -> list[dict[str, str]]:
        """Reasons why new work would not be done right now, each {code, message}; empty when ready."""
        reasons = []
        if self.crash is not None:
            reasons.append({"code": "crashed", "message": self.crash})
        if self.host.state != "ready":
            reasons.append({"code": f"teacher_{self.host.state}", "message": self.host.reason})
        for folder in (self.folders.cask_root, self.folders.state):
            if (reason := self._fault_of(folder)) is not None:
                reasons.append({"code": reason[0], "message": reason[1]})
                break
        return reasons

    def _fault_of(self, folder: Path) -> Reason | None:
        """Code and sentence where a folder cannot take what work writes."""
        try:
            read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
            free = files.free_bytes(folder)
        except OSError as error:
            return passing_fault(error)
        if read_only:
            return "read_only", f"the file system of {folder} is read-only"
        if not os.access(folder, os.W_OK | os.X_OK):
            return "permission_denied", f"the service may not write into {folder}"
        if free < self.settings.disk_floor_bytes:
            return (
                "insufficient_storage",
                f"{free} bytes free, fewer than the floor of {self.settings.disk_floor_bytes}",
            )
        return None

    def _crashed(self, reason: str, *, teacher_failed: bool = False) -> None:
        self.crash, self.exit_code = reason, TEACHER_FAILED if teacher_failed else FAILED
        logger.critical("%s", reason)
        if self.on_crash is not None:
            self.on_crash()
