"""Deletion of jobs that have ended, with all that the database holds of them. Shards stay in their casks."""

import time

from sqlalchemy import delete, select

from logitcask_schemas.api.objects import FINAL
from logitcask_schemas.errors import LogitcaskError
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.deleted_counts import keep_counts
from logitcask_services.jobs.database.tables import (
    AnswerChunkRow,
    ChunkRow,
    EventRow,
    FailureRow,
    IdempotencyRow,
    JobRow,
    ShardRow,
    StageRow,
)
from logitcask_services.jobs.extraction import NotFoundError


class JobInUseError(LogitcaskError, RuntimeError):
    """A job cannot be deleted: it has not ended."""


class JobRemoval:
    """Deletes jobs of every kind."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def delete(self, job_id: str, noun: str) -> None:
        """Forget a job that has ended; its files are the caller's to delete, after this.

        Raises:
            NotFoundError: There is no such job of the kind that `noun` says.
            JobInUseError: It has not ended.
        """
        with self._database.write() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == job_id))
            if row is None or not job_id.startswith(f"{noun}-"):
                raise NotFoundError(noun, job_id)
            if row.status not in FINAL:
                raise JobInUseError(f"{job_id} is {row.status}; cancel it, then delete it when it has ended")
            for column in (
                ChunkRow.extraction,
                ShardRow.extraction,
                StageRow.job,
                AnswerChunkRow.job,
                EventRow.job,
                FailureRow.job,
            ):
                session.execute(delete(column.class_).where(column == row.number))
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.object_id == job_id))
            keep_counts(session, row)
            session.delete(row)

    def ended_before(self, moment: float) -> list[str]:
        """Ids of jobs that ended before a moment (seconds since 1970)."""
        query = select(JobRow.id, JobRow.timestamps).where(JobRow.status.in_(FINAL)).order_by(JobRow.number)
        with self._database.read() as session:
            return [job_id for job_id, times in session.execute(query) if max(times.values()) < moment]


def days_ago(days: float) -> float:
    """The moment so many days ago, in seconds since 1970."""
    return time.time() - days * 86_400
