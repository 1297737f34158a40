"""The event log and the list of failures of an extraction: append, and read page by page."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from logitcask_schemas.api.objects import Failure
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.tables import EventRow, ExtractionRow, FailureRow

PAGE = 1000


def add_event(
    session: Session, row: ExtractionRow, kind: str, message: str, data: dict[str, Any], *, level: str = "info"
) -> None:
    """Append to the log, in the transaction of what it tells of."""
    session.add(
        EventRow(extraction=row.number, created_at=time.time(), level=level, type=kind, message=message, data=data)
    )


def add_failures(session: Session, row: ExtractionRow, failures: Sequence[Failure]) -> None:
    """Append lines and documents that failed, in the transaction that counts them."""
    if failures:
        session.execute(insert(FailureRow), [{"extraction": row.number, **dict(failure)} for failure in failures])


class ExtractionLog:
    """Reads of events and failures, and the bulk writing of bad lines."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def events(self, row: ExtractionRow, *, after: int, limit: int = PAGE) -> Sequence[EventRow]:
        """Events with a `seq` above `after`, in order."""
        query = select(EventRow).where(EventRow.extraction == row.number, EventRow.seq > after)
        with self._database.read() as session:
            return session.scalars(query.order_by(EventRow.seq).limit(limit)).all()

    def failures(self, row: ExtractionRow) -> Iterator[list[dict[str, Any]]]:
        """All bad lines and failed documents in the order they were found, in pages of up to PAGE."""
        after = 0
        table = FailureRow
        columns = (table.custom_id, table.line, table.document, table.stage, table.code, table.message)
        while True:
            # Columns instead of objects: there may be many.
            query = select(table.seq, *columns).where(table.extraction == row.number, table.seq > after)
            with self._database.read() as session:
                page = session.execute(query.order_by(table.seq).limit(PAGE)).all()
            if page:
                names = [column.key for column in columns]
                yield [dict(zip(names, entry[1:], strict=True)) for entry in page]
            if len(page) < PAGE:
                return
            after = page[-1][0]

    def capture_failures(self, row: ExtractionRow) -> dict[int, FailureRow]:
        """Documents the teacher failed on, by number."""
        query = select(FailureRow).where(FailureRow.extraction == row.number, FailureRow.stage == "capture")
        with self._database.read() as session:
            return {failure.document: failure for failure in session.scalars(query) if failure.document is not None}

    def add_bad_lines(self, row: ExtractionRow, bad: Sequence[Failure]) -> None:
        """Append bad lines of the corpus."""
        with self._database.write() as session:
            add_failures(session, row, bad)

    def clear_bad_lines(self, row: ExtractionRow) -> None:
        """Forget the bad lines of a preparation that did not end."""
        with self._database.write() as session:
            session.execute(delete(FailureRow).where(FailureRow.extraction == row.number, FailureRow.stage == "corpus"))
