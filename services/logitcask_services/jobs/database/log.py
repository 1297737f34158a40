"""The event log and the failures of a job, lists of bad lines in files beside the database: append, read in pages."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from logitcask_schemas.api.objects import Failure
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.tables import EventRow, FailureRow, JobRow
from logitcask_services.jobs.failure_files import MAX_BYTES, FailureFiles

PAGE = 1000


def add_event(
    session: Session, row: JobRow, kind: str, message: str, data: dict[str, Any], *, level: str = "info"
) -> None:
    """Append to the log, in the transaction of what it tells of."""
    session.add(EventRow(job=row.number, created_at=time.time(), level=level, type=kind, message=message, data=data))


def add_failures(session: Session, row: JobRow, failures: Sequence[Failure]) -> None:
    """Append lines and documents that failed, in the transaction that counts them."""
    if failures:
        session.execute(insert(FailureRow), [{"job": row.number, **dict(failure)} for failure in failures])


class JobLog:
    """Reads of events and failures, and the bulk writing of bad lines."""

    def __init__(self, database: Database, lists: FailureFiles) -> None:
        self._database = database
        self._lists = lists

    def events(self, row: JobRow, *, after: int, limit: int = PAGE) -> Sequence[EventRow]:
        """Events with a `seq` above `after`, in order."""
        query = select(EventRow).where(EventRow.job == row.number, EventRow.seq > after)
        with self._database.read() as session:
            return session.scalars(query.order_by(EventRow.seq).limit(limit)).all()

    def failures(self, row: JobRow) -> Iterator[list[dict[str, Any]]]:
        """All bad lines and failed documents in the order they were found, in pages of up to PAGE."""
        yield from self._lists.pages(row.id)
        after = 0
        table = FailureRow
        columns = (table.custom_id, table.line, table.document, table.stage, table.code, table.message)
        while True:
            # Columns instead of objects: there may be many.
            query = select(table.seq, *columns).where(table.job == row.number, table.seq > after)
            with self._database.read() as session:
                page = session.execute(query.order_by(table.seq).limit(PAGE)).all()
            if page:
                names = [column.key for column in columns]
                yield [dict(zip(names, entry[1:], strict=True)) for entry in page]
            if len(page) < PAGE:
                return
            after = page[-1][0]

    def capture_failures(self, row: JobRow) -> dict[int, FailureRow]:
        """Documents the teacher failed on, by number."""
        query = select(FailureRow).where(FailureRow.job == row.number, FailureRow.stage == "capture")
        with self._database.read() as session:
            return {failure.document: failure for failure in session.scalars(query) if failure.document is not None}

    def list_bad_lines(self, row: JobRow, bad: Sequence[Failure]) -> int:
        """Append bad lines of the corpus, or rows that were left out, while the list has room; how many it took."""
        return self._lists.append(row.id, bad)

    def note_unlisted(self, row: JobRow, note: Failure) -> None:
        """End a list that is full with what it leaves out."""
        self._lists.append(row.id, [note], most_bytes=2 * MAX_BYTES)

    def clear_bad_lines(self, row: JobRow) -> None:
        """Forget the bad lines of a job whose lines are read anew, those in the database of older versions, too."""
        self._lists.drop(row.id)
        stages = ("corpus", "generation")
        with self._database.write() as session:
            session.execute(delete(FailureRow).where(FailureRow.job == row.number, FailureRow.stage.in_(stages)))
