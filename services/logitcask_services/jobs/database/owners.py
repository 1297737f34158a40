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


class QueueFullError(LogitcaskError, RuntimeError):
    """The service has as many jobs waiting as it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAllowance:
    """Who makes a job, and how many may wait. Jobs wait until they have ended."""

    all_jobs: int
    """Most jobs of everybody."""
    name: str | None = None
    own_jobs: int | None = None
    """Most jobs of this name."""


def claim(session: Session, row: JobRow, allowance: JobAllowance) -> None:
    """Note whose job was just added, within the caller's transaction. Raises TooManyJobsError, QueueFullError."""
    require_room(session, row, allowance)
    if allowance.name is not None and allowance.own_jobs is not None:
        session.add(JobOwnerRow(job=row.number, name=allowance.name))


def require_room(session: Session, row: JobRow, allowance: JobAllowance) -> None:
    """Require that a job may wait beside the others. Raises TooManyJobsError, QueueFullError."""
    waiting = select(func.count()).select_from(JobRow).where(JobRow.status.not_in(FINAL), JobRow.number != row.number)
    if (session.scalar(waiting) or 0) >= allowance.all_jobs:
        raise QueueFullError(f"{allowance.all_jobs} jobs wait, as many as may; wait for one of them, or cancel one")
    if allowance.name is None or allowance.own_jobs is None:
        return
    own = waiting.join(JobOwnerRow, JobOwnerRow.job == JobRow.number).where(JobOwnerRow.name == allowance.name)
    if (session.scalar(own) or 0) >= allowance.own_jobs:
        raise TooManyJobsError(
            f"the key {allowance.name!r} may have {allowance.own_jobs} jobs that have not ended, and has; wait for one "
            "of them, or cancel one"
        )


def inherit(session: Session, row: JobRow, parent: JobRow) -> None:
    """Note that a job just added belongs to whom its parent does. Refused to nobody: the parent was allowed to ask."""
    if (owner := session.get(JobOwnerRow, parent.number)) is not None:
        session.add(JobOwnerRow(job=row.number, name=owner.name))
