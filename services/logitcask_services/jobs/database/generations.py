"""Generations in the job database: creation, their stages and chunks of answers, and what came of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update

from logitcask_schemas.api.generation import GeneratedCorpus, RowCounts, StoredGeneration
from logitcask_schemas.api.objects import FINAL, Failure
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_services.corpora.uploads import StoredCorpus
from logitcask_services.jobs.database.corpora import add_corpus
from logitcask_services.jobs.database.deleted_counts import deleted_counts
from logitcask_services.jobs.database.extractions import new_extraction
from logitcask_services.jobs.database.jobs import JobStore, add_job, move, settle
from logitcask_services.jobs.database.log import add_event, add_failures
from logitcask_services.jobs.database.owners import JobAllowance, inherit, require_room
from logitcask_services.jobs.database.tables import AnswerChunkRow, GenerationRow, StageRow
from logitcask_services.jobs.extraction import IdempotencyKey, check_resumable

SMALLEST_CHUNK, LARGEST_CHUNK, SHARE = 64, 65_536, 64
"""A chunk is 1/64 of a stage's requests, within bounds."""
WEIGHTS = ("model", "weights_digest", "tokenizer_fingerprint", "template_hash")
"""Members of a teacher's identity that decide whether what it writes is another's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewStage:
    """The requests of a teacher step, before the first of them."""

    number: int
    name: str
    kind: str
    template: str | None
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerChunk:
    """Requests first_request .. first_request + requests - 1 of a stage."""

    number: int
    first_request: int
    requests: int
    done: bool = False
    deaths: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCorpus:
    """A corpus of kept rows, on the disk, and the extraction to follow."""

    suffix: str
    stored: StoredCorpus
    name: str
    rows: int
    documents: int
    """Different ones among the rows."""
    extraction: ExtractionRequest | None
    """Its `corpus_id` is filled in."""


class GenerationStore(JobStore[GenerationRow]):
    """The generations."""

    row_type = GenerationRow
    noun = "generation"

    def create(
        self, request: StoredGeneration, key: IdempotencyKey | None, allowance: JobAllowance | None = None
    ) -> tuple[GenerationRow, bool]:
        """The generation and whether it is new. Raises what `JobStore._create` raises."""
        return self._create(
            GenerationRow(corpus_id=request.corpus_id, request=request, status="queued"), key, allowance
        )

    def resume(self, generation_id: str, *, allowance: JobAllowance | None = None) -> GenerationRow:
        """Take a failed or paused generation up again, where it was; `allowance` is the caller's.

        Raises IllegalTransitionError, TooManyJobsError, QueueFullError.
        """
        with self._database.write() as session:
            row = self._row(session, generation_id)
            check_resumable(row.id, row.status)
            if allowance is not None:
                require_room(session, row, allowance)
            move(session, row, "queued", ("resumed", "taken up again as asked"))
            row.error = None
        self._changed(generation_id)
        return row

    def generated_tokens(self) -> int:
        """Tokens that were written, over all generations, also those that are deleted."""
        with self._database.read() as session:
            kept = session.scalar(select(func.sum(GenerationRow.generated_tokens))) or 0
            return kept + deleted_counts(session).get("generated_tokens", 0)

    # -- stages and chunks ---------------------------------------------------------------------------------------

    def stages(self, generation_id: str) -> Sequence[StageRow]:
        """The stages that have begun, in order."""
        with self._database.read() as session:
            row = self._row(session, generation_id)
            return session.scalars(select(StageRow).where(StageRow.job == row.number).order_by(StageRow.number)).all()

    def begin_stage(self, generation_id: str, stage: NewStage) -> StageRow:
        """The stage with its plan of chunks, made where it is not there yet."""
        with self._database.write() as session:
            row = self._row(session, generation_id)
            if (known := session.get(StageRow, (row.number, stage.number))) is not None:
                return known
            begun = StageRow(
                job=row.number,
                number=stage.number,
                name=stage.name,
                kind=stage.kind,
                template=stage.template,
                requests=stage.requests,
            )
            session.add(begun)
            size = min(max(-(-stage.requests // SHARE), SMALLEST_CHUNK), LARGEST_CHUNK)
            session.add_all(
                AnswerChunkRow(
                    job=row.number,
                    stage=stage.number,
                    number=number,
                    first_request=first,
                    requests=min(size, stage.requests - first),
                )
                for number, first in enumerate(range(0, stage.requests, size))
            )
            message = f"step {stage.name} ({stage.kind}) begins: {stage.requests:,} requests"
            add_event(session, row, "stage", message, {"stage": stage.name, "requests": stage.requests})
        self._changed(generation_id)
        return begun

    def chunks(self, generation_id: str, stage: int) -> list[AnswerChunk]:
        """All chunks of a stage, in order."""
        with self._database.read() as session:
            row = self._row(session, generation_id)
            query = select(AnswerChunkRow).where(AnswerChunkRow.job == row.number, AnswerChunkRow.stage == stage)
            return [
                AnswerChunk(
                    number=chunk.number,
                    first_request=chunk.first_request,
                    requests=chunk.requests,
                    done=chunk.done,
                    deaths=chunk.deaths,
                )
                for chunk in session.scalars(query.order_by(AnswerChunkRow.number))
            ]

    def commit_chunk(
        self, generation_id: str, stage: int, chunk: AnswerChunk, *, failed: int, tokens: int, seconds: float
    ) -> None:
        """Chunk, counters and event in one transaction; its file is on the disk."""
        with self._database.write() as session:
            row = self._row(session, generation_id)
            entry = session.get_one(AnswerChunkRow, (row.number, stage, chunk.number))
            if entry.done:
                return
            entry.done = True
            begun = session.get_one(StageRow, (row.number, stage))
            begun.requests_done += chunk.requests
            begun.failed += failed
            begun.generated_tokens += tokens
            row.generated_tokens += tokens
            row.generation_seconds += seconds
            add_event(
                session,
                row,
                "chunk",
                f"chunk {chunk.number} of step {begun.name} is answered",
                {
                    "stage": begun.name,
                    "chunk": chunk.number,
                    "failed": failed,
                    "requests_done": begun.requests_done,
                    "requests_total": begun.requests,
                    "generated_tokens": row.generated_tokens,
                },
            )
        self._changed(generation_id)

    def note(self, generation_id: str, kind: str, message: str) -> None:
        """A warning in the log."""
        with self._database.write() as session:
            add_event(session, self._row(session, generation_id), kind, message, {}, level="warning")
        self._changed(generation_id)

    def record_death(self, generation_id: str, stage: int | None, chunks: Sequence[int], message: str) -> GenerationRow:
        """The teacher died with these chunks in work: count it, and queue the generation again."""
        with self._database.write() as session:
            row = self._row(session, generation_id)
            session.execute(
                update(AnswerChunkRow)
                .where(
                    AnswerChunkRow.job == row.number,
                    AnswerChunkRow.stage == stage,
                    AnswerChunkRow.number.in_(chunks),
                )
                .values(deaths=AnswerChunkRow.deaths + 1)
            )
            if not settle(session, row) and row.status not in FINAL | {"paused"}:
                move(session, row, "queued", ("teacher_died", message), "warning")
                row.waiting = {"code": "teacher_unavailable", "message": message}
        self._changed(generation_id)
        return row

    # -- the end -------------------------------------------------------------------------------------------------

    def count_rows(self, generation_id: str, rows: RowCounts, *, lines: int, bad_lines: int) -> None:
        """Note what became of the lines of the corpus."""
        with self._database.write() as session:
            row = self._row(session, generation_id)
            row.lines, row.bad_lines, row.rows = lines, bad_lines, rows.model_dump(mode="json")
        self._changed(generation_id)

    def fail_on_row(self, generation_id: str, failure: Failure, reason: tuple[str, str]) -> None:
        """in_progress -> failed because of one row (on_error `fail`)."""
        with self._database.write() as session:
            row = self._row(session, generation_id)
            add_failures(session, row, [failure])
            if row.status == "cancelling":
                move(session, row, "cancelled")
            else:
                move(session, row, "failed", reason, "error")
        self._changed(generation_id)

    def complete(
        self, generation_id: str, rows: RowCounts, written: Sequence[WrittenCorpus], *, note: str | None = None
    ) -> list[str]:
        """Finalizing -> completed: the corpora are known and the extractions that follow begun, all at once.

        Args:
            generation_id: whose.
            rows: what became of its rows.
            written: its corpora.
            note: told with the number of rows that were kept.

        Returns:
            Ids of the extractions.
        """
        begun: list[str] = []
        with self._database.write() as session:
            row = self._row(session, generation_id)
            row.rows = rows.model_dump(mode="json")
            corpora = []
            for entry in written:
                corpus, _ = add_corpus(session, entry.stored, entry.name)
                session.flush()
                made = GeneratedCorpus(
                    suffix=entry.suffix,
                    corpus_id=corpus.id,
                    rows=entry.rows,
                    documents=entry.documents,
                    sha256=entry.stored.sha256,
                )
                if entry.extraction is not None:
                    request = entry.extraction.model_copy(update={"corpus_id": corpus.id})
                    extraction = new_extraction(request)
                    add_job(session, extraction, "extraction")
                    inherit(session, extraction, row)
                    begun.append(extraction.id)
                    made = made.model_copy(update={"cask": request.cask, "extraction_id": extraction.id})
                corpora.append(made.model_dump(mode="json"))
            row.corpora = corpora
            follow = f"; {', '.join(begun)} follows" if begun else ""
            told = f"; {note}" if note else ""
            move(session, row, "completed", ("kept", f"{rows.kept:,} rows were kept{follow}{told}"))
        for job_id in (generation_id, *begun):
            self._changed(job_id)
        return begun
