"""The thread that deletes what is kept no longer: late uploads in parts, old jobs, corpora that nobody uses."""

import logging
import threading

from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.corpora import CorpusInUseError
from logitcask_services.jobs.database.removal import JobInUseError, days_ago
from logitcask_services.jobs.database.uploads import UploadStateError
from logitcask_services.jobs.extraction import NotFoundError

logger = logging.getLogger(__name__)
SECONDS = 600.0
"""Between two rounds."""


def delete_job(context: JobContext, job_id: str, noun: str) -> None:
    """Forget a job that has ended, and delete its files. Raises NotFoundError, JobInUseError."""
    context.removal.delete(job_id, noun)
    context.folders.drop_job(job_id)  # a crash before this leaves files that the next start sweeps


def delete_corpus(context: JobContext, corpus_id: str) -> None:
    """Forget a corpus, and delete its content. Raises NotFoundError, CorpusInUseError."""
    with context.storage.publishing:
        row = context.corpora.delete(corpus_id)
        context.storage.path(row.sha256).unlink(missing_ok=True)


def expire_uploads(context: JobContext) -> None:
    """Delete what came of uploads whose time is over."""
    for upload_id in context.uploads.expired():
        try:
            context.uploads.end(upload_id, "expired")
        except UploadStateError:
            continue  # completed or cancelled at the last moment
        context.parts.drop(upload_id)
        logger.info("the time of %s is over; its parts are deleted", upload_id)


def sweep(context: JobContext) -> None:
    """One round."""
    expire_uploads(context)
    settings = context.settings
    if settings.retain_jobs_days is not None:
        for job_id in context.removal.ended_before(days_ago(settings.retain_jobs_days)):
            try:
                delete_job(context, job_id, job_id.partition("-")[0])
            except (JobInUseError, NotFoundError):
                continue  # resumed or deleted meanwhile
            logger.info("%s ended more than %g days ago and is deleted", job_id, settings.retain_jobs_days)
    if settings.retain_corpora_days is not None:
        for corpus_id in context.corpora.unused_since(days_ago(settings.retain_corpora_days)):
            try:
                delete_corpus(context, corpus_id)
            except (CorpusInUseError, NotFoundError):
                continue
            logger.info("%s was not used for %g days and is deleted", corpus_id, settings.retain_corpora_days)


class Housekeeper(threading.Thread):
    """A round at the start, then one every `SECONDS`."""

    def __init__(self, context: JobContext) -> None:
        super().__init__(name="logitcask-housekeeper", daemon=True)
        self._context = context

    def run(self) -> None:
        """Work until the service stops."""
        while not self._context.signals.stopping.is_set():
            try:
                sweep(self._context)
            except (OSError, OperationalError, PoolTimeoutError) as error:
                logger.warning("old files are not deleted now: %s", error)
            except Exception as error:
                logger.exception("the housekeeping thread ended")
                self._context.crashed(f"the housekeeping thread ended: {error}")
                return
            self._context.signals.stopping.wait(SECONDS)
