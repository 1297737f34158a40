"""Extractions in the job database: creation, what is to be prepared and captured, resumption."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from logitcask_schemas.api.objects import FINAL, Status
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.jobs.database.deleted_counts import deleted_counts
from logitcask_services.jobs.database.jobs import IN_ORDER, JobStore, job_row, move
from logitcask_services.jobs.database.owners import JobAllowance, require_room
from logitcask_services.jobs.database.tables import ChunkRow, CorpusRow, ExtractionRow, FailureRow
from logitcask_services.jobs.extraction import IdempotencyKey, check_resumable

TOKENS = ("tokenizer_fingerprint", "template_hash")
"""Members of a teacher's identity that decide whether token ids prepared with it are another's too."""


QueueState = Literal["queued", "in_progress", "paused"]
"""`paused`: nobody works on them before they are resumed."""
QUEUE_STATES: Final[Mapping[Status, QueueState]] = {
    "queued": "queued",
    "in_progress": "in_progress",
    "pausing": "paused",
    "paused": "paused",
}
MEASURED_JOBS = 5
"""So many of the latest extractions say how fast a teacher is."""


def row_of(session: Session, extraction_id: str) -> ExtractionRow:
    """The row of an extraction, within the caller's transaction. Raises NotFoundError."""
    return job_row(session, ExtractionRow, "extraction", extraction_id)


def new_extraction(request: ExtractionRequest) -> ExtractionRow:
    """A row to be added."""
    return ExtractionRow(corpus_id=request.corpus_id, request=request, status="validating")


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all extractions, also those that are deleted; names are those of the row's columns."""

    tokens_captured: int
    captured_documents: int
    failed_documents: int
    bytes_written: int


class ExtractionStore(JobStore[ExtractionRow]):
    """The extractions."""

    row_type = ExtractionRow
    noun = "extraction"

    def create(
        self, request: ExtractionRequest, key: IdempotencyKey | None, allowance: JobAllowance | None = None
    ) -> tuple[ExtractionRow, bool]:
        """The extraction and whether it is new. Raises what `JobStore._create` raises."""
        return self._create(new_extraction(request), key, allowance)

    def totals(self) -> Totals:
        """Sums over all extractions, also those that are deleted."""
        names = [field.name for field in fields(Totals)]
        with self._database.read() as session:
            sums = session.execute(select(*(func.sum(getattr(ExtractionRow, name)) for name in names))).one()
            gone = deleted_counts(session)
            return Totals(*((value or 0) + gone.get(name, 0) for name, value in zip(names, sums, strict=True)))

    def tokens_ahead(self) -> dict[QueueState, int]:
        """Tokens of prepared extractions that are still to be captured and committed, by what becomes of them now."""
        ahead = func.sum(ExtractionRow.tokens_total - ExtractionRow.tokens_done)
        query = select(ExtractionRow.status, ahead).where(ExtractionRow.status.in_(QUEUE_STATES))
        found: dict[QueueState, int] = dict.fromkeys(get_args(QueueState), 0)
        with self._database.read() as session:
            for status, tokens in session.execute(query.group_by(ExtractionRow.status)).all():
                found[QUEUE_STATES[status]] += tokens or 0
        return found

    def measured_pace(self, teacher: TeacherIdentity) -> float | None:
        """Captured tokens per second over the latest extractions of this teacher; None where none was measured."""
        query = (
            select(ExtractionRow.tokens_captured, ExtractionRow.capture_seconds)
            .where(
                ExtractionRow.capture_seconds > 0,
                ExtractionRow.tokens_captured > 0,
                ExtractionRow.teacher["weights_digest"].as_string() == teacher.weights_digest,
                ExtractionRow.teacher["engine"].as_string() == teacher.engine,
            )
            .order_by(ExtractionRow.number.desc())
            .limit(MEASURED_JOBS)
        )
        with self._database.read() as session:
            measured = session.execute(query).all()
        seconds = sum(row.capture_seconds for row in measured)
        return sum(row.tokens_captured for row in measured) / seconds if seconds else None

    def resume(self, extraction_id: str, *, prepared: bool, allowance: JobAllowance | None = None) -> ExtractionRow:
        """Take a failed or paused extraction up again, where it was.

        Raises IllegalTransitionError, TooManyJobsError, QueueFullError.

        Args:
            extraction_id: of a failed or paused extraction.
            prepared: its tokens are still there; else it is validated anew.
            allowance: of the caller; a failed one waits again.
        """
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            check_resumable(row.id, row.status)
            if allowance is not None:
                require_room(session, row, allowance)
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

    def to_prepare(self) -> list[tuple[ExtractionRow, int]]:
        """Extractions to be validated with the bytes of their corpora, in the order of the queue."""
        query = select(ExtractionRow, CorpusRow.bytes).join(CorpusRow, CorpusRow.id == ExtractionRow.corpus_id)
        query = query.where(ExtractionRow.status == "validating").order_by(*IN_ORDER)
        with self._database.read() as session:
            return [(row, size) for row, size in session.execute(query)]


def _forget_failures(session: Session, row: ExtractionRow, *, counted: bool) -> None:
    """Let documents of chunks that are still to do be tried again, those excepted that killed the teacher twice."""
    pending = session.scalars(select(ChunkRow).where(ChunkRow.extraction == row.number, ChunkRow.done.is_(False))).all()
    failures = session.scalars(
        select(FailureRow).where(FailureRow.job == row.number, FailureRow.stage == "capture")
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
    session.execute(delete(FailureRow).where(FailureRow.job == row.number, FailureRow.stage == "capture"))
    row.captured_documents = row.present_documents = row.failed_documents = row.tokens_done = 0
