"""The work of an extraction in the job database: its plan, its chunks, their shards and failures."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from logitcask_schemas.api.objects import FINAL, Failure
from logitcask_schemas.record.beyond_tokens import BeyondTokens
from logitcask_schemas.terminal import counted
from logitcask_services.corpora.line_problems import BEYOND_TOKENS
from logitcask_services.corpora.prepare import Prepared
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.extractions import row_of
from logitcask_services.jobs.database.jobs import move, settle
from logitcask_services.jobs.database.log import add_event, add_failures
from logitcask_services.jobs.database.tables import ChunkRow, ExtractionRow, ShardRow
from logitcask_services.jobs.extraction import Chunk, ChunkOutcome, IllegalTransitionError


class ChunkStore:
    """Chunks of all extractions. `changed(id)` is called after each committed change, from the thread that made it."""

    def __init__(self, database: Database, changed: Callable[[str], None]) -> None:
        self._database = database
        self._changed = changed

    def save_preparation(
        self, extraction_id: str, prepared: Prepared, teacher: dict[str, Any], chunks: Sequence[Chunk]
    ) -> None:
        """Validating -> queued, with the plan. Raises IllegalTransitionError from every other state."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            if row.status != "validating":  # a paused or failed one is queued by a resume alone
                raise IllegalTransitionError(row.id, row.status, "queued")
            _count_lines(row, prepared)
            row.documents, row.tokens_total, row.teacher = prepared.documents, prepared.tokens, teacher
            session.add_all(
                ChunkRow(
                    extraction=row.number,
                    number=chunk.number,
                    first_document=chunk.first_document,
                    documents=chunk.documents,
                    tokens=chunk.tokens,
                )
                for chunk in chunks
            )
            counts = {"document": prepared.documents, "token": prepared.tokens, "chunk": len(chunks)}
            message = ", ".join(counted(count, noun) for noun, count in counts.items())
            add_event(
                session,
                row,
                "prepared",
                message,
                {
                    "documents": prepared.documents,
                    "tokens": prepared.tokens,
                    "bad_lines": prepared.bad_lines,
                    "skipped_lines": prepared.skipped_lines,
                    "truncated_lines": prepared.truncated_lines,
                    "notes": prepared.notes,
                },
            )
            move(session, row, "queued")
            row.waiting = None
        self._changed(extraction_id)

    def save_failed_preparation(self, extraction_id: str, prepared: Prepared, reason: tuple[str, str]) -> None:
        """Validating -> failed, with the counts of what was read."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            _count_lines(row, prepared)
            move(session, row, "failed", reason, "error")
        self._changed(extraction_id)

    def pending_chunks(self, extraction_id: str) -> list[Chunk]:
        """Chunks not yet committed, in corpus order."""
        with self._database.read() as session:
            row = row_of(session, extraction_id)
            query = select(ChunkRow).where(ChunkRow.extraction == row.number, ChunkRow.done.is_(False))
            return [
                Chunk(
                    number=chunk.number,
                    first_document=chunk.first_document,
                    documents=chunk.documents,
                    tokens=chunk.tokens,
                    deaths=chunk.deaths,
                )
                for chunk in session.scalars(query.order_by(ChunkRow.number))
            ]

    def commit_chunk(self, extraction_id: str, chunk: Chunk, outcome: ChunkOutcome) -> None:
        """Chunk, counters, failures and event in one transaction."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            entry = session.get_one(ChunkRow, (row.number, chunk.number))
            if entry.done:
                return
            entry.done = True
            session.add_all(
                ShardRow(extraction=row.number, chunk=chunk.number, name=shard["name"], entry=shard)
                for shard in outcome.shards
            )
            row.captured_documents += outcome.captured_documents
            row.present_documents += outcome.present_documents
            row.failed_documents += len(outcome.failures) + outcome.earlier_failures
            row.tokens_done += chunk.tokens
            row.tokens_captured += outcome.captured_tokens
            row.bytes_written += sum(map(_bytes_of, outcome.shards))
            row.capture_seconds += outcome.seconds
            add_failures(session, row, outcome.failures)
            if outcome.beyond_tokens is not None and outcome.beyond_tokens.records:
                _note_beyond_tokens(session, row, outcome.beyond_tokens)
            add_event(
                session,
                row,
                "chunk",
                f"chunk {chunk.number} is in the cask",
                {
                    "chunk": chunk.number,
                    "shards": [shard["name"] for shard in outcome.shards],
                    "captured": outcome.captured_documents,
                    "present": outcome.present_documents,
                    "failed": len(outcome.failures) + outcome.earlier_failures,
                    "tokens_done": row.tokens_done,
                    "tokens_total": row.tokens_total,
                },
            )
        self._changed(extraction_id)

    def count_shard(self, extraction_id: str, document: int, shard: dict[str, Any]) -> None:
        """Count a shard of a cancelled extraction whose chunk nobody lived to commit.

        Args:
            extraction_id: Whose shard it is.
            document: One of the shard's, which tells the chunk.
            shard: Its entry in the cask.
        """
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            query = select(ChunkRow).where(ChunkRow.extraction == row.number, ChunkRow.first_document <= document)
            chunk = session.scalars(query.order_by(ChunkRow.number.desc()).limit(1)).first()
            if chunk is None or session.get(ShardRow, (row.number, chunk.number, shard["name"])) is not None:
                return  # the plan was made anew, which begins to count anew; or its run was late, and has counted it
            chunk.done = True
            session.add(ShardRow(extraction=row.number, chunk=chunk.number, name=shard["name"], entry=shard))
            row.captured_documents += shard["documents"]
            row.tokens_done += shard["tokens"]
            row.tokens_captured += shard["tokens"]
            row.bytes_written += _bytes_of(shard)
        self._changed(extraction_id)

    def owner_of_shard(self, shard_name: str, cask: str, *, since: float) -> int | None:
        """The number of an extraction whose chunk published this shard into a cask, or None.

        A shard's name follows from its documents, so another cask, or one of this name that was deleted, may have the
        same: extractions that were over before `since` (seconds since the epoch) own nothing.
        """
        owners = select(ExtractionRow).join(ShardRow, ShardRow.extraction == ExtractionRow.number)
        with self._database.read() as session:
            for row in session.scalars(owners.where(ShardRow.name == shard_name)):
                if row.request.cask == cask and max(row.timestamps.values()) >= since:
                    return row.number
        return None

    def shard_names(self, extraction_id: str) -> set[str]:
        """Of the shards that are counted."""
        with self._database.read() as session:
            row = row_of(session, extraction_id)
            return set(session.scalars(select(ShardRow.name).where(ShardRow.extraction == row.number)))

    def shards(self, extraction_id: str) -> Sequence[ShardRow]:
        """Published shards in corpus order."""
        with self._database.read() as session:
            row = row_of(session, extraction_id)
            return session.scalars(
                select(ShardRow).where(ShardRow.extraction == row.number).order_by(ShardRow.chunk, ShardRow.name)
            ).all()

    def record_death(self, extraction_id: str, chunks: Sequence[int], message: str) -> ExtractionRow:
        """The teacher died with these chunks in work: count it, and queue the extraction again."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            session.execute(
                update(ChunkRow)
                .where(ChunkRow.extraction == row.number, ChunkRow.number.in_(chunks))
                .values(deaths=ChunkRow.deaths + 1)
            )
            if not settle(session, row) and row.status not in FINAL | {"paused"}:
                move(session, row, "queued", ("teacher_died", message), "warning")
                row.waiting = {"code": "teacher_unavailable", "message": message}
        self._changed(extraction_id)
        return row

    def fail_on_document(self, extraction_id: str, failure: Failure, reason: tuple[str, str]) -> None:
        """in_progress -> failed because of one document (on_error `fail`)."""
        with self._database.write() as session:
            row = row_of(session, extraction_id)
            add_failures(session, row, [failure])
            row.failed_documents += 1
            if row.status == "cancelling":
                move(session, row, "cancelled")
            else:
                move(session, row, "failed", reason, "error")
        self._changed(extraction_id)

    def record_failure(self, extraction_id: str, failure: Failure) -> None:
        """Note a document that must not be given to the teacher again; its chunk counts it when it is committed."""
        with self._database.write() as session:
            add_failures(session, row_of(session, extraction_id), [failure])
        self._changed(extraction_id)


def _bytes_of(shard: dict[str, Any]) -> int:
    """Of a shard's files, by its entry."""
    size: int = shard["bytes"] + (shard.get("hints") or {}).get("bytes", 0)
    return size


def _note_beyond_tokens(session: Session, row: ExtractionRow, seen: BeyondTokens) -> None:
    """Count documents whose records hold ids that are no tokens; the first chunk with one says how much it is."""
    notes = dict(row.notes or {})
    if BEYOND_TOKENS not in notes:
        add_event(
            session,
            row,
            BEYOND_TOKENS,
            f"{seen.records:,} of {counted(seen.positions, 'record')} of this chunk hold ids that are no tokens of the "
            f"tokenizer (up to {seen.largest_id:,}); the teacher puts {seen.mass:.2g} of its mass there. They are "
            "recorded as they are",
            {"records": seen.records, "positions": seen.positions, "mass": seen.mass, "largest_id": seen.largest_id},
            level="warning",
        )
    row.notes = notes | {BEYOND_TOKENS: notes.get(BEYOND_TOKENS, 0) + seen.blocks}


def _count_lines(row: ExtractionRow, prepared: Prepared) -> None:
    row.lines, row.bad_lines, row.skipped_lines = prepared.lines, prepared.bad_lines, prepared.skipped_lines
    row.truncated_lines, row.split_lines = prepared.truncated_lines, prepared.split_lines
    row.notes, row.first_lines = prepared.notes, prepared.examples
