"""Extractions in the job database: creation, lists, states; a change of state is logged as an event."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import delete, func, null, select, update
from sqlalchemy.orm import Session

from logitcask_schemas.api.objects import FINAL, Status
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.jobs.database.corpora import forget_old_keys, recall, remember
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.log import add_event
from logitcask_services.jobs.database.tables import ChunkRow, CorpusRow, ExtractionRow, FailureRow
from logitcask_services.jobs.extraction import IdempotencyKey, NotFoundError, check_step

TOKENS = ("tokenizer_fingerprint", "template_hash")
"""Members of a teacher's identity that decide whether token ids prepared with it are another's too."""


def row_of(session: Session, extraction_id: str) -> ExtractionRow:
    """The row of an extraction, within the caller's transaction. Raises NotFoundError."""
    row = session.scalar(select(ExtractionRow).where(ExtractionRow.id == extraction_id))
    if row is None:
        raise NotFoundError("extraction", extraction_id)
    return row


def move(
    session: Session, row: ExtractionRow, status: Status, reason: tuple[str, str] | None = None, level: str = "info"
) -> None:
    """Enter a state, within the caller's transaction; `reason` = (code, message). Raises IllegalTransitionError."""
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


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all extractions; names are those of the row's columns."""

    tokens_captured: int
    captured_documents: int
    failed_documents: int
    bytes_written: int


class ExtractionStore:
    """The extractions. `changed(id)` is called after each committed change, from the thread that made it."""

    def __init__(self, database: Database, changed: Callable[[str], None]) -> None:
        self._database = database
        self._changed = changed

    # -- requests ------------------------------------------------------------------------------------------------

    def create(self, request: ExtractionRequest, key: IdempotencyKey | None) -> tuple[ExtractionRow, bool]:
        """The extraction and whether it is new. Raises NotFoundError (corpus), IdempotencyConflictError."""
        with self._database.write() as session:
            if (object_id := recall(session, key)) is not None:
                return row_of(session, object_id), False
            if session.scalar(select(CorpusRow.number).where(CorpusRow.id == request.corpus_id)) is None:
                raise NotFoundError("corpus", request.corpus_id)
            row = ExtractionRow(
                id=f"extraction-{secrets.token_hex(12)}",
                corpus_id=request.corpus_id,
                request=request,
                status="validating",
                timestamps={"validating": time.time()},
            )
            session.add(row)
            session.flush()
            remember(session, key, row.id)
            add_event(session, row, "status", "validating", {"status": "validating"})
        self._changed(row.id)
        return row, True

    def get(self, extraction_id: str) -> ExtractionRow:
        """The extraction with this id. Raises NotFoundError."""
        with self._database.read() as session:
            return row_of(session, extraction_id)

    def page(self, *, status: Status | None, after: str | None, limit: int) -> Sequence[ExtractionRow]:
        """Up to `limit` extractions, newest first, older than `after`."""
        query = select(ExtractionRow).order_by(ExtractionRow.number.desc()).limit(limit)
        if status is not None:
            query = query.where(ExtractionRow.status == status)
        if after is not None:
            query = query.where(ExtractionRow.number < self.get(after).number)
        with self._database.read() as session:
            return session.scalars(query).all()

    def count_by_status(self) -> dict[Status, int]:
        """How many extractions are in each state that occurs."""
        with self._database.read() as session:
            query = select(ExtractionRow.status, func.count()).group_by(ExtractionRow.status)
            return {row[0]: row[1] for row in session.execute(query)}

    def totals(self) -> Totals:
        """Sums over all extractions."""
        with self._database.read() as session:
            columns = [getattr(ExtractionRow, field.name) for field in fields(Totals)]
            return Totals(*(value or 0 for value in session.execute(select(*map(func.sum, columns))).one()))

    # -- states --------------------------------------------------------------------------------------------------

    def step(
        self, extraction_id: str, status: Status, *, reason: tuple[str, str] | None = None, level: str = "info"
    ) -> ExtractionRow:
        """Move to `status`; `reason` = (code, message). Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            move(session, row, status, reason, level)
        self._changed(extraction_id)
        return row

    def finish(self, extraction_id: str, status: Status, *, reason: tuple[str, str] | None = None) -> ExtractionRow:
        """Move a running extraction to its end; a cancel that came in meanwhile wins. Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            if row.status == "cancelling":
                move(session, row, "cancelled")
            else:
                move(session, row, status, reason, "error" if status == "failed" else "info")
        self._changed(extraction_id)
        return row

    def cancel(self, extraction_id: str) -> ExtractionRow:
        """Ask for the end: queued ones end here, running ones become `cancelling`. Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            if row.status != "cancelling":
                move(session, row, "cancelled" if row.status == "queued" else "cancelling")
        self._changed(extraction_id)
        return row

    def set_waiting(self, extraction_id: str, reason: tuple[str, str] | None) -> None:
        """Say what holds the extraction up, or that nothing does any more."""
        value = {"code": reason[0], "message": reason[1]} if reason else None
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            if row.waiting == value or row.status in FINAL:
                return
            row.waiting = value
            if reason:
                add_event(session, row, "waiting", reason[1], {"code": reason[0]}, level="warning")
            else:
                add_event(session, row, "resumed", "what held the extraction up is over", {})
        self._changed(extraction_id)

    def put_aside(self, extraction_id: str, reason: tuple[str, str]) -> None:
        """in_progress -> queued, waiting for something of its own. Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            move(session, row, "queued", reason, "warning")
            row.waiting = {"code": reason[0], "message": reason[1]}
        self._changed(extraction_id)

    def resume(self, extraction_id: str, *, prepared: bool) -> ExtractionRow:
        """Take a failed extraction up again, where it was. Raises IllegalTransitionError.

        Args:
            extraction_id: of a failed extraction.
            prepared: its tokens are still there; else it is validated anew.
        """
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            code, prepared = (row.error or {}).get("code"), prepared and row.teacher is not None
            move(session, row, "queued" if prepared else "validating", ("resumed", "taken up again as asked"))
            row.error = None
            if prepared:
                _forget_failures(session, row, counted=code == "document_failed")
            elif row.teacher is not None:
                _begin_anew(session, row)
        self._changed(extraction_id)
        return row

    def keeps_tokens(self) -> set[str]:
        """Ids of extractions that have not ended, or failed and may be resumed."""
        query = select(ExtractionRow.id).where(ExtractionRow.status.not_in(FINAL - {"failed"}))
        with self._database.read() as session:
            return set(session.scalars(query))

    def recover(self) -> list[str]:
        """After a restart: what ran goes back to queued, what was being cancelled is cancelled. Ids that moved."""
        moved: list[str] = []
        with self._database.write() as session:
            forget_old_keys(session)
            states: tuple[Status, ...] = ("in_progress", "finalizing", "cancelling")
            for row in session.scalars(select(ExtractionRow).where(ExtractionRow.status.in_(states))):
                if row.status == "cancelling":
                    move(session, row, "cancelled")
                else:
                    move(session, row, "queued", ("service_restarted", "the service restarted; the run goes on"))
                moved.append(row.id)
            # What held something up before may be over; it is noticed again where it is not.
            session.execute(update(ExtractionRow).where(ExtractionRow.status.not_in(FINAL)).values(waiting=null()))
        return moved

    def in_status(self, status: Status) -> Sequence[ExtractionRow]:
        """Extractions in a state, oldest first."""
        query = select(ExtractionRow).where(ExtractionRow.status == status).order_by(ExtractionRow.number)
        with self._database.read() as session:
            return session.scalars(query).all()

    def waiting(self) -> list[tuple[str, str, int]]:
        """Why extractions wait: code, the message of one of them, how many."""
        code = ExtractionRow.waiting["code"].as_string()
        message = func.min(ExtractionRow.waiting["message"].as_string())
        query = select(code, message, func.count()).where(ExtractionRow.status.not_in(FINAL), code.is_not(None))
        with self._database.read() as session:
            return [(code, message, count) for code, message, count in session.execute(query.group_by(code))]

    def to_prepare(self) -> list[tuple[ExtractionRow, int]]:
        """Extractions to be validated with the bytes of their corpora, oldest first."""
        query = select(ExtractionRow, CorpusRow.bytes).join(CorpusRow, CorpusRow.id == ExtractionRow.corpus_id)
        query = query.where(ExtractionRow.status == "validating").order_by(ExtractionRow.number)
        with self._database.read() as session:
            return [(row, size) for row, size in session.execute(query)]

    def queued_for(self, teacher: TeacherIdentity) -> list[ExtractionRow]:
        """Queued extractions whose tokens are this teacher's, whichever of its versions they were prepared with."""
        return [row for row in self.in_status("queued") if _has_tokens_of(row, teacher)]

    def queued_for_others(self, teacher: TeacherIdentity) -> list[ExtractionRow]:
        """Queued extractions whose tokens are another teacher's."""
        return [row for row in self.in_status("queued") if not _has_tokens_of(row, teacher)]

    def begin(self, extraction_id: str, teacher: dict[str, Any]) -> ExtractionRow:
        """Queued -> in_progress, by this teacher. Raises IllegalTransitionError."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            move(session, row, "in_progress")
            row.teacher = teacher
        self._changed(extraction_id)
        return row


def _has_tokens_of(row: ExtractionRow, teacher: TeacherIdentity) -> bool:
    return row.teacher is not None and all(row.teacher.get(name) == getattr(teacher, name) for name in TOKENS)


def _forget_failures(session: Session, row: ExtractionRow, *, counted: bool) -> None:
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


def _begin_anew(session: Session, row: ExtractionRow) -> None:
    """Forget the plan, which the next preparation makes again; what is in the cask is found there, as present."""
    session.execute(delete(ChunkRow).where(ChunkRow.extraction == row.number))
    session.execute(delete(FailureRow).where(FailureRow.extraction == row.number, FailureRow.stage == "capture"))
    row.captured_documents = row.present_documents = row.failed_documents = row.tokens_done = 0
