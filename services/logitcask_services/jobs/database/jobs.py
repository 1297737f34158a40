"""Jobs of one kind in the job database: lists and states; a change of state is logged as an event."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import func, null, select, update
from sqlalchemy.orm import Session

from logitcask_schemas.api.objects import FINAL, Status
from logitcask_services.jobs.database.corpora import forget_old_keys, recall, remember
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.log import add_event
from logitcask_services.jobs.database.owners import JobAllowance, claim
from logitcask_services.jobs.database.tables import CorpusRow, JobRow
from logitcask_services.jobs.extraction import IdempotencyKey, IllegalTransitionError, NotFoundError, check_step

R = TypeVar("R", bound=JobRow)
IN_ORDER = (JobRow.priority.desc(), JobRow.place)
"""The order of the queue."""


def job_row(session: Session, kind: type[R], noun: str, job_id: str) -> R:
    """The row of a job, within the caller's transaction. Raises NotFoundError."""
    row = session.scalar(select(kind).where(kind.id == job_id))
    if row is None:
        raise NotFoundError(noun, job_id)
    return row


def move(
    session: Session, row: JobRow, status: Status, reason: tuple[str, str] | None = None, level: str = "info"
) -> None:
    """Enter a state, within the caller's transaction; `reason` = (code, message). Raises IllegalTransitionError."""
    check_step(row.id, row.status, status)
    row.status = status
    row.timestamps = {**row.timestamps, status: time.time()}
    detail = {"code": reason[0], "message": reason[1]} if reason else None
    if status == "failed":
        row.error = detail
    if status in FINAL or status == "paused":
        row.waiting = None
    message = f"{status}: {reason[1]}" if reason else status
    add_event(session, row, "status", message, {"status": status, "reason": detail}, level=level)


def settle(session: Session, row: JobRow) -> bool:
    """End what was asked to end, hold what was asked to be held, within the caller's transaction; whether it was."""
    if row.status not in ("cancelling", "pausing"):
        return False
    move(session, row, "cancelled" if row.status == "cancelling" else "paused")
    return True


class JobStore(Generic[R]):
    """The jobs of one kind. `changed(id)` is called after each committed change, from the thread that made it."""

    row_type: ClassVar[type[JobRow]]
    noun: ClassVar[str]

    def __init__(self, database: Database, changed: Callable[[str], None]) -> None:
        self._database = database
        self._changed = changed

    @property
    def _kind(self) -> type[R]:
        return self.row_type  # type: ignore[return-value]  # class attributes cannot name a type variable

    def _row(self, session: Session, job_id: str) -> R:
        return job_row(session, self._kind, self.noun, job_id)

    def _create(self, row: R, key: IdempotencyKey | None, allowance: JobAllowance | None) -> tuple[R, bool]:
        """The job and whether it is new.

        Raises NotFoundError (corpus), IdempotencyConflictError, TooManyJobsError, QueueFullError.
        """
        with self._database.write() as session:
            if (object_id := recall(session, key)) is not None:
                return self._row(session, object_id), False
            self._add(session, row)
            if allowance is not None:
                claim(session, row, allowance)
            remember(session, key, row.id)
        self._changed(row.id)
        return row, True

    def _add(self, session: Session, row: R) -> None:
        """A new job in the state that the row says, within the caller's transaction."""
        add_job(session, row, self.noun)

    def get(self, job_id: str) -> R:
        """The job with this id. Raises NotFoundError."""
        with self._database.read() as session:
            return self._row(session, job_id)

    def ids(self) -> set[str]:
        """Of all jobs of the kind."""
        with self._database.read() as session:
            return set(session.scalars(select(self._kind.id)))

    def page(self, *, status: Status | None, after: str | None, limit: int) -> Sequence[R]:
        """Up to `limit` jobs, newest first, older than `after`."""
        query = select(self._kind).order_by(self._kind.number.desc()).limit(limit)
        if status is not None:
            query = query.where(self._kind.status == status)
        if after is not None:
            query = query.where(self._kind.number < self.get(after).number)
        with self._database.read() as session:
            return session.scalars(query).all()

    def count_by_status(self) -> dict[Status, int]:
        """How many jobs are in each state that occurs."""
        with self._database.read() as session:
            query = select(self._kind.status, func.count()).group_by(self._kind.status)
            return {row[0]: row[1] for row in session.execute(query)}

    def step(self, job_id: str, status: Status, *, reason: tuple[str, str] | None = None, level: str = "info") -> R:
        """Move to `status`; `reason` = (code, message). Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            move(session, row, status, reason, level)
        self._changed(job_id)
        return row

    def finish(self, job_id: str, status: Status, *, reason: tuple[str, str] | None = None) -> R:
        """Move a running job to its end; a cancel that came in meanwhile wins. Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            if row.status == "cancelling":
                move(session, row, "cancelled")
            else:
                move(session, row, status, reason, "error" if status == "failed" else "info")
        self._changed(job_id)
        return row

    def cancel(self, job_id: str) -> R:
        """Ask for the end: queued ones end here, running ones become `cancelling`. Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            if row.status != "cancelling":
                move(session, row, "cancelled" if row.status in ("queued", "paused") else "cancelling")
        self._changed(job_id)
        return row

    def pause(self, job_id: str) -> R:
        """Ask to be held: queued ones are at once, running ones become `pausing`. Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            if row.status not in ("pausing", "paused"):
                move(session, row, "paused" if row.status == "queued" else "pausing")
        self._changed(job_id)
        return row

    def set_waiting(self, job_id: str, reason: tuple[str, str] | None) -> None:
        """Say what holds the job up, or that nothing does any more."""
        value = {"code": reason[0], "message": reason[1]} if reason else None
        with self._database.write() as session:
            row = self._row(session, job_id)
            if row.waiting == value or row.status in FINAL:
                return
            row.waiting = value
            if reason:
                add_event(session, row, "waiting", reason[1], {"code": reason[0]}, level="warning")
            else:
                add_event(session, row, "resumed", "what held the job up is over", {})
        self._changed(job_id)

    def leave(self, job_id: str, *, requeue: bool = False) -> R:
        """Work on the job ended early: it is cancelled or paused as was asked, or queued again where `requeue` says."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            if not settle(session, row) and requeue and row.status == "in_progress":
                move(session, row, "queued", ("queue_paused", "the queue was paused; what is published stays"))
        self._changed(job_id)
        return row

    def put_aside(self, job_id: str, reason: tuple[str, str]) -> None:
        """A running job is queued again, waiting for something of its own. Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            if row.status not in ("in_progress", "finalizing"):  # a paused one stays so
                raise IllegalTransitionError(job_id, row.status, "queued")
            move(session, row, "queued", reason, "warning")
            row.waiting = {"code": reason[0], "message": reason[1]}
        self._changed(job_id)

    def recover(self) -> list[str]:
        """After a restart: what ran is queued, what was to be cancelled or paused is. Ids that moved."""
        moved: list[str] = []
        with self._database.write() as session:
            forget_old_keys(session)
            states: tuple[Status, ...] = ("in_progress", "finalizing", "pausing", "cancelling")
            for row in session.scalars(select(self._kind).where(self._kind.status.in_(states))):
                if not settle(session, row):
                    move(session, row, "queued", ("service_restarted", "the service restarted; the run goes on"))
                moved.append(row.id)
            # What held something up before may be over; it is noticed again where it is not.
            session.execute(update(self._kind).where(self._kind.status.not_in(FINAL)).values(waiting=null()))
        return moved

    def in_status(self, status: Status) -> Sequence[R]:
        """Jobs in a state, in the order of the queue."""
        query = select(self._kind).where(self._kind.status == status).order_by(*IN_ORDER)
        with self._database.read() as session:
            return session.scalars(query).all()

    def waiting(self) -> list[tuple[str, str, int]]:
        """Why jobs wait: code, the message of one of them, how many."""
        code = self._kind.waiting["code"].as_string()
        message = func.min(self._kind.waiting["message"].as_string())
        query = select(code, message, func.count()).where(self._kind.status.not_in(FINAL), code.is_not(None))
        with self._database.read() as session:
            return [(code, message, count) for code, message, count in session.execute(query.group_by(code))]

    def begin(self, job_id: str, teacher: dict[str, Any]) -> R:
        """Queued -> in_progress, by this teacher. Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = self._row(session, job_id)
            move(session, row, "in_progress")
            row.teacher = teacher
        self._changed(job_id)
        return row


class AnyJobs(JobStore[JobRow]):
    """The jobs of all kinds, to be looked at."""

    row_type = JobRow
    noun = "batch"


def add_job(session: Session, row: JobRow, noun: str) -> None:
    """A new job, within the caller's transaction. Raises NotFoundError where its corpus is not there."""
    corpus = select(CorpusRow.number).where(CorpusRow.id == row.corpus_id, CorpusRow.deleted_at.is_(None))
    if session.scalar(corpus) is None:
        raise NotFoundError("corpus", row.corpus_id)
    row.id = f"{noun}-{secrets.token_hex(12)}"
    row.timestamps = {row.status: time.time()}
    row.priority = row.request.priority
    session.add(row)
    session.flush()
    # Numbers of jobs that were deleted may come again, and moves give a number's place to another job.
    row.place = 1 + (session.scalar(select(func.max(JobRow.place)).where(JobRow.number != row.number)) or 0)
    add_event(session, row, "status", row.status, {"status": row.status})
