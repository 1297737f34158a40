"""The service without HTTP: folders, database, teacher, threads. The HTTP layer and the tests stand on this."""

import logging
import time
from collections.abc import Callable

from logitcask_services.generation.recipes import RecipeBook
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.extraction_work import count_untold
from logitcask_services.jobs.housekeeper import Housekeeper
from logitcask_services.jobs.loaded_teacher import LoadHinted, Role, Teacher
from logitcask_services.jobs.preparer import Claims, Preparer
from logitcask_services.jobs.roster import Roster
from logitcask_services.jobs.storage_watch import StorageWatch
from logitcask_services.jobs.watchdog import Watchdog
from logitcask_services.jobs.worker import Worker
from logitcask_services.settings import ServiceSettings

logger = logging.getLogger(__name__)
JOIN_SECONDS = 5.0
"""A teacher in a process of its own has ended by then: see `jobs.watchdog.STEP_SECONDS`."""


class Service(JobContext):
    """One running service. `start` once, `stop` once. Raises RecipeError where the folder of templates is missing."""

    def __init__(
        self, settings: ServiceSettings, load: Callable[[Role], Teacher] | Roster, load_hinted: LoadHinted | None = None
    ) -> None:
        self.recipes = RecipeBook(settings.templates)  # before anything is opened, should the folder be missing
        super().__init__(settings, load, load_hinted)
        watchdog = Watchdog(self)
        claims = Claims()
        self._storage_watch = StorageWatch(self)
        # A second one takes what is small only, so that large corpora do not hold up all others.
        self._threads = (
            Preparer(self, claims, lane="all"),
            Preparer(self, claims, lane="small"),
            Worker(self, watchdog),
            watchdog,
            Housekeeper(self),
        )

    def start(self) -> None:
        """Clean up after an earlier crash, put interrupted jobs back into the queue, start the threads."""
        self.storage.sweep()
        self.parts.sweep(self.uploads.part_ids())
        self.signals.queue_paused = self.queue.paused_at() is not None
        if self.signals.queue_paused:
            logger.warning("the queue is paused: no job is worked on until `logitcask jobs resume --all`")
        for status in ("cancelling", "cancelled"):
            for row in self.extractions.in_status(status):  # a kill may have come before its last shards were counted
                count_untold(self, row)
        for job_id in (*self.extractions.recover(), *self.generations.recover()):
            logger.info("%s goes on after a restart", job_id)
        if self.database.is_new and any(self.folders.corpora.glob("*.jsonl")):
            # Token stores stay: the database that knows whose they are may be put back.
            logger.warning(
                "%s holds corpora, but no job database: the list of jobs begins anew. Was the database moved "
                "away? Then stop the service and put it back",
                self.folders.state,
            )
        else:
            for sha256 in self.storage.sweep_orphans(self.corpora.digests()):
                logger.info("the content %s.jsonl was no corpus's, and is deleted", sha256)
            generations = self.generations.ids()
            self.folders.sweep(
                keep=self.extractions.keeps_tokens() | generations, jobs=self.extractions.ids() | generations
            )
        for thread in self._threads:
            thread.start()
        self._storage_watch.start()  # nobody waits for its end: it writes nothing, and a store may take long to answer

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
        if self.teacher.state not in ("ready", "switching"):
            reasons.append({"code": f"teacher_{self.teacher.state}", "message": self.teacher.reason})
        if (fault := self._storage_watch.fault()) is not None:
            reasons.append({"code": fault[0], "message": fault[1]})
        return reasons
