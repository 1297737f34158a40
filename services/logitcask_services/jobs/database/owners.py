"""Whose jobs are whose, for keys that may have so many jobs waiting: counted where they are made, so it is exact."""

from dataclasses import dataclass

from sqlalchemy import Connection, ForeignKey, Table, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from logitcask_schemas.api.objects import FINAL
from logitcask_schemas.errors import LogitcaskError
from logitcask_services.jobs.database.tables import Base, JobRow


class JobOwnerRow(Base):
    """The key with which a job was made, where that key has a limit."""

    __tablename__ = "job_owners"

    job: Mapped[int] = mapped_column(ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(index=True)


def create_table(connection: Connection) -> None:
    """Make the table where it is not there. Older versions of the service leave it alone, so no version tells of it."""
    table = JobOwnerRow.__table__
    assert isinstance(table, Table)
    table.create(connection, checkfirst=True)


class TooManyJobsError(LogitcaskError, RuntimeError):
    """A key has as many jobs waiting as it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOwner:
    """Who makes a job."""

    name: str
    waiting_jobs: int
    """Most jobs of this name that have not ended."""


def claim(session: Session, row: JobRow, owner: JobOwner | None) -> None:
    """Note whose job was just added, within the caller's transaction. Raises TooManyJobsError."""
    if owner is None:
        return
    query = select(func.count()).select_from(JobRow).join(JobOwnerRow, JobOwnerRow.job == JobRow.number)
    query = query.where(JobOwnerRow.name == owner.name, JobRow.status.not_in(FINAL))
    if (session.scalar(query) or 0) >= owner.waiting_jobs:
        raise TooManyJobsError(
            f"the key {owner.name!r} may have {owner.waiting_jobs} jobs that have not ended, and has; wait for one of "
            "them, or cancel one"
        )
    session.add(JobOwnerRow(job=row.number, name=owner.name))
