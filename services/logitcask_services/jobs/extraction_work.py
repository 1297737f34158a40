"""What runs of an extraction have in common, with one engine or with many: its cask, and what becomes of its chunks."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from logitcask_schemas.api.objects import Failure
from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.cask.directory import read_entry
from logitcask_schemas.cask.format.manifest import EXTENT_VERSION, FORMAT_VERSION
from logitcask_schemas.errors import CaptureSpecError, CaskError, CaskNotFoundError, LogitcaskError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.terminal import counted
from logitcask_services.cask_places import holds_cask
from logitcask_services.corpora.corpus_lines import custom_id_at
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.engines.engine import Engine, require_hints
from logitcask_services.engines.hint_shape import resolve_hints
from logitcask_services.jobs.chunk_publication import ShardLedger
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.tables import ExtractionRow
from logitcask_services.jobs.extraction import Chunk, ChunkOutcome
from logitcask_services.jobs.job_run import Ending
from logitcask_services.jobs.waiting import Reason, Waiter

logger = logging.getLogger(__name__)
LOCK_SECONDS: Final = 2.0
REPEATS_FAILED: Final = ("repeats_failed", "the same document failed earlier in this corpus")
"""Code and message of a document whose first occurrence could not be captured."""


class ExtractionWork:
    """Of one run of one extraction, by a loaded engine.

    Raises:
        CaptureSpecError: the spec asks for what the teacher does not give.
        CaskError: the cask is another teacher's, or damaged, or gone.
        StoppedWhileWaitingError, SetAsideError: called off while it waited for disk or cask.
    """

    def __init__(
        self, context: JobContext, row: ExtractionRow, engine: Engine, gives_way: Callable[[float], bool]
    ) -> None:
        self.context = context
        self.row = row
        self.engine = engine
        try:
            spec = CaptureSpec.model_validate(row.request.capture.model_dump(mode="json"))
        except ValidationError as error:  # stored by a version that allowed more
            raise CaptureSpecError(f"the capture spec cannot be followed: {error}") from error
        self.spec = resolve_hints(spec, engine.hint_shape)
        if self.spec.hints is not None and (reason := context.teacher.refusal_of(self.spec.hints)) is not None:
            raise CaptureSpecError(reason)
        require_hints(engine, self.spec)
        self.tokens = TokenStore(context.folders.token_store(row.id))
        self._corpus = context.storage.path(context.corpora.get(row.corpus_id).sha256)
        self.cask = context.folders.cask(row.request.cask)
        """Folder or URL."""
        self.waiter = Waiter(
            (*context.folders.casks.disks, context.folders.state),
            floor=context.settings.disk_floor_bytes,
            poll_seconds=context.settings.pause_poll_seconds,
            ends=lambda seconds: context.signals.stopping.wait(seconds) or context.signals.ends(row.id),
            set_waiting=lambda reason: context.extractions.set_waiting(row.id, reason),
            gives_way=gives_way,
        )
        self.needs_extents = self.tokens.has_extents or row.request.loss_on != "all"
        self.writer: CaskWriter = self.waiter.run(self._open_cask)
        self.ledger = ShardLedger(context.folders.ledger(row.id))
        """Whose names this run writes down too."""
        self._counted = context.chunks.shard_names(row.id)
        """Shards of its own that are counted."""
        self.was_begun = bool(self.ledger.names())
        """Whether an earlier run may have published something."""
        self._adopted: dict[int, dict[bytes, str]] = {}
        """By chunk: documents of shards that are its own, each with its shard."""
        self._entries: dict[str, dict[str, Any]] = {}
        """Of those shards, by name."""
        self._last_commit = time.monotonic()

    def _open_cask(self) -> CaskWriter:
        # A cask that this extraction has begun is waited for, as a disk that is not mounted is; never begun anew.
        begun = self.row.captured_documents + self.row.present_documents > 0
        if begun and not holds_cask(self.cask):
            raise CaskNotFoundError(
                f"{self.cask}: the cask is missing, and {self.row.tokens_done} tokens of this extraction with it"
            )
        writer = CaskWriter.create(
            self.cask,
            teacher=self.engine.identity,
            capture=self.spec,
            carrier=self.row.request.carrier,
            lock_timeout_seconds=LOCK_SECONDS,
            accept=self.context.settings.accept_teacher,
            version=EXTENT_VERSION if self.needs_extents else FORMAT_VERSION,
            single_writer=self.context.settings.single_writer,
        )
        if self.needs_extents:
            writer.manifest.require_extents(f"cask {self.row.request.cask!r}", "this extraction asks for")
        return writer

    def pending(self) -> list[Chunk]:
        """Chunks that are not committed, in corpus order; what of them is in the cask already is adopted.

        Raises CaskError where what earlier runs put into the cask is no longer there.
        """
        pending = self.context.chunks.pending_chunks(self.row.id)
        self._require_committed(pending)
        self.adopt(pending)
        return pending

    def _require_committed(self, pending: list[Chunk]) -> None:
        done, after = list[range](), 0
        for chunk in pending:
            done.append(range(after, chunk.first_document))
            after = chunk.first_document + chunk.documents
        done.append(range(after, self.tokens.num_documents))
        failed = self.context.log.capture_failures(self.row).keys() if any(done) else ()
        missing = [
            document
            for part in done
            for document in part
            if document not in failed and not self.writer.has(self.tokens.document_id(document))
        ]
        if missing:
            raise CaskError(
                f"{len(missing)} documents that this extraction had put into the cask {self.row.request.cask!r} are "
                f"no longer there (the first: line {self.tokens.line(missing[0])[0]}): it was deleted, exchanged or "
                "repaired meanwhile. Put it back and resume, or submit the corpus again, which captures what is missing"
            )

    def adopt(self, chunks: Sequence[Chunk]) -> None:
        """Find the shards that were published for chunks which nobody then lived to commit.

        With many engines any chunk that was handed out may have one, so all are looked at. A shard is a chunk's when
        this extraction's ledger names it, none has counted it, and all its documents are the chunk's.
        """
        announced = self.ledger.names() - self._counted
        if not announced:
            return
        of_chunks = {chunk.number: ids for chunk in chunks if any(map(self.writer.has, ids := self._ids_of(chunk)))}
        if not of_chunks:
            return
        document_ids = set[bytes]().union(*of_chunks.values())
        for entry, stored in self.waiter.run(lambda: self.writer.shards_with(document_ids)):
            if entry.name not in announced or entry.name in self._entries:
                continue  # somebody else's, or adopted before
            if _is_anothers(self.context, self.row, entry.name):
                continue
            number = next((number for number, ids in of_chunks.items() if stored <= ids), None)
            if number is not None:
                logger.info("extraction %s: shard %s was published, and not yet counted", self.row.id, entry.name)
                self._adopted.setdefault(number, {}).update(dict.fromkeys(stored, entry.name))
                self._entries[entry.name] = entry.model_dump(mode="json")

    def look_again(self, chunks: Sequence[Chunk]) -> None:
        """Adopt what was published of chunks without anybody having been told. Raises as `pending`."""
        if self.ledger.names() - self._counted:
            self.waiter.run(self.writer.refresh)
            self.adopt(chunks)

    def has_adopted(self, chunk: Chunk) -> bool:
        """Whether a shard of the chunk was found that is not counted yet."""
        return chunk.number in self._adopted

    def has_all(self, documents: Iterable[int]) -> bool:
        """Whether the cask has them, as far as was looked."""
        return all(self.writer.has(self.tokens.document_id(document)) for document in documents)

    def _ids_of(self, chunk: Chunk) -> set[bytes]:
        return {
            self.tokens.document_id(document)
            for document in range(chunk.first_document, chunk.first_document + chunk.documents)
        }

    def take_adopted(self, chunk: Chunk, present: Iterable[int], outcome: ChunkOutcome) -> list[int]:
        """Count documents of a chunk that lie in shards of its own as captured, once each; the others."""
        adopted = self._adopted.pop(chunk.number, {})
        # A worker that did not know of a shard makes it again, and is told of the one that is there.
        told = {shard["name"] for shard in outcome.shards}
        for name in sorted(set(adopted.values()) - told):
            outcome.shards.insert(0, self._entries[name])
        others = []
        for document in present:
            if adopted.pop(self.tokens.document_id(document), None) is None:
                others.append(document)
            else:
                outcome.captured_documents += 1
                outcome.captured_tokens += len(self.tokens.tokens(document))
        return others

    def commit(self, chunk: Chunk, outcome: ChunkOutcome) -> None:
        """A chunk's shard is in the cask: the transaction that counts it. Raises StoppedWhileWaitingError."""
        now = time.monotonic()
        outcome.seconds, self._last_commit = now - self._last_commit, now
        self.waiter.run(lambda: self.context.chunks.commit_chunk(self.row.id, chunk, outcome))
        self._counted.update(shard["name"] for shard in outcome.shards)
        self.context.measures.chunk_seconds.observe(outcome.seconds)

    def finalize(self) -> Ending:
        """Fold the cask's entries into its index, so that opening it reads one file; how the extraction ended."""
        self.waiter.run(self.writer.close)
        now = self.context.extractions.get(self.row.id)
        if now.captured_documents + now.present_documents:
            return "completed", None
        documents = counted(now.documents, "document")
        message = f"none of the {documents} could be captured; `/errors` says why for each"
        return "failed", ("nothing_captured", message)

    def fail_on(self, failure: Failure) -> None:
        """The extraction ends with a document that failed."""
        reason = ("document_failed", f"line {failure.line}: {failure.message}; on_error is `fail`")
        self.context.chunks.fail_on_document(self.row.id, failure, reason)

    def note_cancelled(self) -> None:
        """Called from the watchdog's thread: the extraction was cancelled, and the teacher is deep in its work."""
        if self.context.extractions.get(self.row.id).status == "cancelling":
            self.context.extractions.finish(self.row.id, "cancelled")

    def describe(self, document: int, code: str, message: str) -> Failure:
        """What is listed of a document that could not be captured."""
        line, start = self.tokens.line(document)
        custom_id = custom_id_at(self._corpus, start, self.context.settings.max_line_bytes)
        return Failure(stage="capture", document=document, line=line, custom_id=custom_id, code=code, message=message)


class ExtractionJobRun:
    """What is the same of a run with one engine and of one with many; see `JobRun`.

    Args:
        work: of the run.
    """

    def __init__(self, work: ExtractionWork) -> None:
        self._work = work
        self._failure: Failure | None = None
        """The document that ends the extraction, where `on_error` says so."""

    @property
    def job_id(self) -> str:
        """Whose run it is."""
        return self._work.row.id

    @property
    def set_aside(self) -> Reason | None:
        """Why the run gave way to others, where it did."""
        return self._work.waiter.set_aside

    def finalize(self) -> Ending:
        """See `ExtractionWork`."""
        return self._work.finalize()

    def record_failure(self) -> None:
        """The extraction ends with the document that failed."""
        assert self._failure is not None  # go said so
        self._work.fail_on(self._failure)

    def note_cancelled(self) -> None:
        """See `ExtractionWork`."""
        self._work.note_cancelled()


def count_untold(context: JobContext, row: ExtractionRow) -> None:
    """Count what a cancelled extraction published and nobody lived to count, by its ledger and the cask.

    A run that goes on adopts such shards; nobody takes up a cancelled job. A kill, a service that stops or a full disk
    may stand between the publication of a shard and the transaction that counts it. Idempotent, until the job's tokens
    and ledger are dropped. Where the cask cannot be read now the counts stay too small, and the log says so.
    """
    try:
        if announced := ShardLedger(context.folders.ledger(row.id)).names():
            _count(context, row, announced - context.chunks.shard_names(row.id))
    except (LogitcaskError, OSError) as error:
        logger.warning("%s: what it published last is not in its counts, the cask cannot be read: %s", row.id, error)


def _count(context: JobContext, row: ExtractionRow, names: set[str]) -> None:
    cask, tokens = context.folders.casks.open(row.request.cask), TokenStore(context.folders.token_store(row.id))
    for name in sorted(names):
        if _is_anothers(context, row, name):
            continue
        try:
            entry = read_entry(cask.location.directory, name)
        except CaskNotFoundError:
            continue  # it was about to be published
        first_id = cask.location.read_documents([entry], cask.layout)[name].ids[0]
        places = np.flatnonzero((tokens.document_ids_D32 == first_id).all(axis=1))
        if len(places):  # else of an earlier validation, which gave other documents
            logger.info("extraction %s: shard %s was published, and not yet counted", row.id, name)
            context.chunks.count_shard(row.id, int(places[0]), entry.model_dump(mode="json"))


def _is_anothers(context: JobContext, row: ExtractionRow, name: str) -> bool:
    """Whether another extraction published the shard, after this one was about to and did not live to."""
    began = min(row.timestamps.values())
    return context.chunks.owner_of_shard(name, row.request.cask, since=began) is not None
