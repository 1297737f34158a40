"""The queue over jobs of every kind: priorities, places, and whether anything is worked on at all.

Jobs go by priority, then by place. Places are in the order of creation until one is moved: the jobs of one priority
then exchange theirs, so that a new job, whose place is the largest, always comes last among its equals.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from sqlalchemy import ColumnElement, and_, or_, select, true
from sqlalchemy.orm import Session

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.jobs import IN_ORDER
from logitcask_services.jobs.database.log import add_event
from logitcask_services.jobs.database.tables import JobRow, ServiceStateRow
from logitcask_services.jobs.extraction import MOVABLE, NotFoundError

PAUSE = "queue_pause"
PAGE = 32
"""Jobs that are read at once."""


class NotWaitingError(LogitcaskError, ValueError):
    """A job has no place in the queue, because it runs or has ended."""

    def __init__(self, row: JobRow) -> None:
        super().__init__(
            f"{row.id} is {row.status} and has no place in the queue; only jobs that are {', '.join(sorted(MOVABLE))} "
            "can be moved, or others before them"
        )
        self.current = row.status


class JobQueue:
    """The queue. `changed(id)` is called after each committed change, from the thread that made it."""

    def __init__(self, database: Database, changed: Callable[[str], None]) -> None:
        self._database = database
        self._changed = changed

    def waiting(self, limit: int | None = None) -> Sequence[JobRow]:
        """Jobs that have a place, in order."""
        query = select(JobRow).where(JobRow.status.in_(MOVABLE)).order_by(*IN_ORDER).limit(limit)
        with self._database.read() as session:
            return session.scalars(query).all()

    def queued(self) -> Iterator[JobRow]:
        """Queued jobs of all kinds, in order, a few at a time: whoever looks for the first one reads no others.

        A job that is moved meanwhile may be left out, or come twice.
        """
        beyond: ColumnElement[bool] = true()
        while True:
            query = select(JobRow).where(JobRow.status == "queued", beyond).order_by(*IN_ORDER).limit(PAGE)
            with self._database.read() as session:
                page = session.scalars(query).all()
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1]
            same = and_(JobRow.priority == last.priority, JobRow.place > last.place)
            beyond = or_(JobRow.priority < last.priority, same)

    def set_priority(self, job_id: str, priority: int) -> JobRow:
        """Give a waiting job another priority. Among its new equals it goes by its place.

        Raises NotFoundError, NotWaitingError.
        """
        with self._database.write() as session:
            row = _waiting_row(session, job_id)
            if row.priority != priority:
                row.priority = priority
                _log(session, row, f"priority {priority}")
        self._changed(job_id)
        return row

    def move_before(self, job_id: str, other_id: str | None) -> JobRow:
        """Put a waiting job directly before another one, or (None) before all; it takes over that one's priority.

        Raises NotFoundError, NotWaitingError.
        """
        with self._database.write() as session:
            row = _waiting_row(session, job_id)
            first = session.scalars(select(JobRow).where(JobRow.status.in_(MOVABLE)).order_by(*IN_ORDER)).first()
            other = first if other_id is None else _waiting_row(session, other_id)
            if other is not None and other is not row:
                _put_before(session, row, other)
                _log(session, row, f"moved before {other.id}")
        self._changed(job_id)
        return row

    def paused_at(self) -> float | None:
        """Since when (seconds since 1970) the queue is paused; None where it is not."""
        with self._database.read() as session:
            state = session.get(ServiceStateRow, PAUSE)
            return None if state is None else float(state.value["at"])

    def pause(self) -> float:
        """Pause the queue, also over restarts; since when it is."""
        with self._database.write() as session:
            state = session.get(ServiceStateRow, PAUSE)
            if state is None:
                state = ServiceStateRow(name=PAUSE, value={"at": time.time()})
                session.add(state)
            return float(state.value["at"])

    def resume(self) -> None:
        """Go on with the queue."""
        with self._database.write() as session:
            if (state := session.get(ServiceStateRow, PAUSE)) is not None:
                session.delete(state)


def _waiting_row(session: Session, job_id: str) -> JobRow:
    row = session.scalar(select(JobRow).where(JobRow.id == job_id))
    if row is None:
        raise NotFoundError("generation" if job_id.startswith("generation-") else "extraction", job_id)
    if row.status not in MOVABLE:
        raise NotWaitingError(row)
    return row


def _put_before(session: Session, row: JobRow, other: JobRow) -> None:
    """Exchange the places of the equals of `other`, among them `row` from now on."""
    row.priority = other.priority
    equals = select(JobRow).where(JobRow.status.in_(MOVABLE), JobRow.priority == other.priority)
    rest = [job for job in session.scalars(equals.order_by(JobRow.place)) if job is not row]
    at = rest.index(other)
    order = [*rest[:at], row, *rest[at:]]
    for job, place in zip(order, sorted(job.place for job in order), strict=True):
        job.place = place


def _log(session: Session, row: JobRow, message: str) -> None:
    add_event(session, row, "queue", message, {"priority": row.priority})
