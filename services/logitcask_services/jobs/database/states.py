"""Changes of an extraction's row, inside a transaction of their caller; a change of state is logged as an event."""

import time

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from logitcask_schemas.api.objects import FINAL, Status
from logitcask_services.jobs.database.log import add_event
from logitcask_services.jobs.database.tables import ChunkRow, ExtractionRow, FailureRow
from logitcask_services.jobs.extraction import NotFoundError, check_step


def row_of(session: Session, extraction_id: str) -> ExtractionRow:
    """Raises NotFoundError."""
    row = session.scalar(select(ExtractionRow).where(ExtractionRow.id == extraction_id))
    if row is None:
        raise NotFoundError("extraction", extraction_id)
    return row


def move(
    session: Session, row: ExtractionRow, status: Status, reason: tuple[str, str] | None = None, level: str = "info"
) -> None:
    """Enter a state; `reason` = (code, message). Raises IllegalTransitionError."""
    check_step(row.id, row.status, status)
    row.status = status
    row.timestamps = {**row.timestamps, status: time.time()}
    detail = {"code": reason[0], "message": reason[1]} if reason else None
    if status == "failed":
        row.error = detail
    if status in FINAL:
        row.waiting = None
    message = f"{status}: {reason[1]}" if reason else status
    add_event(session, row, "status", message, {"status": status, "reason": detail}, level=level)


def forget_failures(session: Session, row: ExtractionRow, *, counted: bool) -> None:
    """Let documents of chunks that are still to do be tried again, those excepted that killed the teacher twice."""
    pending = session.scalars(select(ChunkRow).where(ChunkRow.extraction == row.number, ChunkRow.done.is_(False))).all()
    failures = session.scalars(
        select(FailureRow).where(FailureRow.extraction == row.number, FailureRow.stage == "capture")
    ).all()
    for failure in failures:
        document = -1 if failure.document is None else failure.document
        open_again = any(chunk.first_document <= document < chunk.first_document + chunk.documents for chunk in pending)
        if open_again and failure.code != "teacher_died":
            session.delete(failure)
            row.failed_documents -= int(counted)


def begin_anew(session: Session, row: ExtractionRow) -> None:
    """Forget the plan, which the next preparation makes again; what is in the cask is found there, as present."""
    session.execute(delete(ChunkRow).where(ChunkRow.extraction == row.number))
    session.execute(delete(FailureRow).where(FailureRow.extraction == row.number, FailureRow.stage == "capture"))
    row.captured_documents = row.present_documents = row.failed_documents = row.tokens_done = 0
