"""From a plan of chunks to a stream of tasks, and from results in any order back to whole chunks in corpus order.

The engine draws tasks as it has room, so several chunks are open at once and nothing drains between them. Chunks are
released strictly in order: the shards of a cask do not depend on which document came back first.
"""

import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from logitcask_schemas.errors import DocumentMismatchError, InvalidRecordError, LogitcaskError
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.engines.engine import CaptureResult, CaptureTask
from logitcask_services.jobs.extraction import Chunk


class StrangeResultError(LogitcaskError, RuntimeError):
    """The engine broke its protocol."""


class DocumentIndex(Protocol):
    """What knows which documents a cask holds."""

    def has(self, document_id: bytes) -> bool:
        """Whether the cask holds the document."""
        ...


@dataclass(slots=True, kw_only=True)
class OpenChunk:
    """A chunk whose documents are with the teacher."""

    chunk: Chunk
    documents: dict[int, DocumentRecords] = field(default_factory=dict)
    """Captured so far, by document number, in order of completion."""
    failures: dict[int, tuple[str, str]] = field(default_factory=dict)
    """(code, message) by document number."""
    present: list[int] = field(default_factory=list)
    """Documents not given to the teacher: in the cask, or earlier in the corpus."""
    earlier_failures: int = 0
    waiting: int = 0
    fed: bool = False

    @property
    def ready(self) -> bool:
        """Whether every document of the chunk has come back."""
        return self.fed and not self.waiting


def capture_task(tokens: TokenStore, document: int) -> CaptureTask:
    """The task of a document, its arrays views of the store."""
    return CaptureTask(
        key=document,
        token_ids_L=tokens.tokens(document),
        recorded_R2=tokens.recorded(document),
        context=tokens.context(document),
    )


class ChunkFeed:
    """One run's stream. `release(open_chunk)` gets each whole chunk, in order; it may block."""

    def __init__(
        self,
        tokens: TokenStore,
        index: DocumentIndex,
        *,
        vocab_size: int,
        failed_before: Collection[int],
        ends: Callable[[], bool],
        release: Callable[[OpenChunk], None],
    ) -> None:
        self._tokens = tokens
        self._index = index
        self._vocab_size = vocab_size
        self._failed_before = failed_before
        self._ends = ends
        self._release = release
        self._open: dict[int, OpenChunk] = {}
        self._chunk_of: dict[int, OpenChunk] = {}
        self._with_teacher: set[bytes] = set()
        """Documents of open chunks, so that a repetition in the corpus is not captured while the first one is."""
        self.fault: Exception | None = None
        """What went wrong while the engine drew tasks; kept here, so that it is not taken for the engine's death."""

    @property
    def open_chunks(self) -> list[int]:
        """Numbers of chunks that are with the teacher."""
        return list(self._open)

    @property
    def waiting(self) -> int:
        """Documents that are with the teacher."""
        return len(self._chunk_of)

    def tasks(self, chunks: Iterable[Chunk]) -> Iterator[CaptureTask]:
        """The tasks of these chunks. Ends early when the run should end or its own work fails (see `fault`)."""
        return (task for task in self.tasks_as_they_come(chunks) if task is not None)

    def tasks_as_they_come(self, chunks: Iterable[Chunk | None]) -> Iterator[CaptureTask | None]:
        """The same of chunks that are not all known yet; None: none just now, for the engine as for the feed."""
        try:
            for chunk in chunks:
                if chunk is None:
                    yield None
                else:
                    yield from self._tasks_of(chunk)
                if self._ends():
                    return
        except Exception as error:  # noqa: BLE001 - carried around the engine and raised by the run
            self.fault = error

    def _tasks_of(self, chunk: Chunk) -> Iterator[CaptureTask]:
        entry = self._open[chunk.number] = OpenChunk(chunk=chunk)
        for document in range(chunk.first_document, chunk.first_document + chunk.documents):
            if self._ends():
                return
            if document in self._failed_before:
                entry.earlier_failures += 1
                continue
            identity = self._tokens.document_id(document)
            if identity in self._with_teacher or self._index.has(identity):
                entry.present.append(document)
                continue
            self._with_teacher.add(identity)
            self._chunk_of[document] = entry
            entry.waiting += 1
            yield capture_task(self._tokens, document)
        entry.fed = True
        self._release_ready()

    def accept(self, result: CaptureResult) -> tuple[str, str] | None:
        """Take one result; returns (code, message) where the document failed. Raises StrangeResultError."""
        document = result.key
        entry = self._chunk_of.pop(document, None) if isinstance(document, int) else None
        if entry is None or not isinstance(document, int):
            raise StrangeResultError(f"the engine returned a result for {document!r}, which it was not working on")
        entry.waiting -= 1
        failure = self._fault_of(document, result)
        if failure is None and result.document is not None:
            entry.documents[document] = result.document
        elif failure is not None:
            entry.failures[document] = failure
        self._release_ready()
        return failure

    def _fault_of(self, document: int, result: CaptureResult) -> tuple[str, str] | None:
        if result.document is None:
            return "capture_failed", f"the teacher could not capture the document: {result.error}"
        if not np.array_equal(result.document.token_ids_L, self._tokens.tokens(document)):
            return "wrong_tokens", "the teacher returned records of other token ids than it was given"
        if result.document.id != self._tokens.document_id(document):
            return "wrong_positions", "the teacher returned records of other positions than it was asked for"
        try:
            result.document.check(self._vocab_size, where=f"document {document}")
        except (InvalidRecordError, DocumentMismatchError) as error:
            return "invalid_records", str(error)
        return None

    def _release_ready(self) -> None:
        while self._open:
            number, entry = next(iter(self._open.items()))
            if not entry.ready:
                return
            self._release(entry)
            del self._open[number]

    def settle(self, entry: OpenChunk) -> None:
        """A released chunk is in the cask, whose index now answers for its documents."""
        for document in (*entry.documents, *entry.failures):
            self._with_teacher.discard(self._tokens.document_id(document))


QUEUE_CHUNKS = 2


class Publisher:
    """One run's writer thread. `publish(open_chunk)` must be safe to repeat."""

    def __init__(self, publish: Callable[[OpenChunk], None]) -> None:
        self._publish = publish
        self._queue: queue.Queue[OpenChunk | None] = queue.Queue(QUEUE_CHUNKS)
        self._thread = threading.Thread(target=self._work, name="logitcask-publisher", daemon=True)
        self.error: Exception | None = None
        self._thread.start()

    def submit(self, entry: OpenChunk) -> None:
        """Hand over a whole chunk; blocks while two wait. Raises what stopped the thread."""
        while True:
            if self.error is not None:
                raise self.error
            try:
                self._queue.put(entry, timeout=0.2)
            except queue.Full:
                continue
            return

    def finish(self) -> None:
        """Wait until everything handed over is durable. Raises what stopped the thread."""
        self.join()
        if self.error is not None:
            raise self.error

    def join(self) -> None:
        """Wait for the thread to end, whatever its outcome. Idempotent."""
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.2)
            except queue.Full:
                continue
            break
        self._thread.join()

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                self._publish(entry)
            except Exception as error:  # noqa: BLE001 - handed to the run's thread, which raises it
                self.error = error
                return
