"""The work of one loaded engine on chunks as they are ordered: one stream, a shard for each chunk, documents alone."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.cask.format.manifest import EXTENT_VERSION, FORMAT_VERSION
from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.beyond_tokens import beyond_tokens_of
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.engines.engine import CaptureResult, Engine, require_hints
from logitcask_services.jobs.chunk_publication import ShardLedger, publish_chunk
from logitcask_services.jobs.chunks import ChunkFeed, OpenChunk, Publisher, capture_task
from logitcask_services.jobs.executors.chunk_orders import (
    CaptureJob,
    ChunkDone,
    ChunkOrder,
    DocumentFailed,
    StreamTasks,
    TeacherReady,
    TokensCaptured,
    WorkerEvent,
)
from logitcask_services.jobs.extraction import Chunk
from logitcask_services.jobs.live import Heartbeat
from logitcask_services.jobs.setbacks import Suspicion, TeacherDiedError
from logitcask_services.jobs.teacher_streams import TeacherStreams

TELL_SECONDS: Final = 1.0
"""Between two words about documents that came back."""
_NO_JOB: Final = ""


def _forget(name: str) -> None:
    """A shard's name, where no one asks later whose it is."""


class ChunkCapture:
    """Of one engine and one job; all of it is the worker thread's but publishing."""

    def __init__(
        self,
        job: CaptureJob,
        engine: Engine,
        heartbeat: Heartbeat,
        next_order: Callable[..., ChunkOrder | None],
        dropped: threading.Event,
        say: Callable[[WorkerEvent], None],
        stream: StreamTasks,
        attempt: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._engine = engine
        self._spec = job.spec
        self._holds_failed = job.holds_failed
        self._give = stream
        self._attempt = attempt
        self._next_order = next_order
        self._dropped = dropped
        self._say = say
        require_hints(engine, job.spec)
        job.spec.require_vocabulary(engine.identity.vocab_size)
        self._tokens = TokenStore(job.tokens)
        self._writer = CaskWriter.create(
            job.cask,
            teacher=engine.identity,
            capture=job.spec,
            carrier=job.carrier,
            lock_timeout_seconds=job.lock_seconds,
            accept=job.accept,
            version=EXTENT_VERSION if job.needs_extents else FORMAT_VERSION,
            single_writer=job.single_writer,
        )
        if job.needs_extents:
            self._writer.manifest.require_extents(str(job.cask), "this corpus has")
        self._note: Callable[[str], None] = _forget if job.ledger is None else ShardLedger(job.ledger).note
        self._left_out = set[int]()
        self._suspicion = Suspicion()
        self._streams = TeacherStreams[CaptureResult](
            _NO_JOB, self._suspicion, heartbeat=heartbeat, progressed=lambda: None, spared=(CaptureSpecError,)
        )
        self._heartbeat = heartbeat
        self._publisher = Publisher(self._publish)
        self._feed = ChunkFeed(
            self._tokens,
            self._writer,
            vocab_size=engine.identity.vocab_size,
            failed_before=self._left_out,
            ends=self._stops,
            release=self._release,
        )
        self._next_alone: ChunkOrder | None = None
        self._is_over = self._holds = False
        self._untold_tokens, self._told = 0, time.monotonic()
        say(TeacherReady(model=engine.identity.model))

    @property
    def open_chunks(self) -> tuple[int, ...]:
        """Numbers of the chunks that are with the teacher."""
        return tuple(self._feed.open_chunks)

    @property
    def culprit(self) -> int | None:
        """The document that was alone with the teacher when it died."""
        return self._suspicion.number

    def go(self) -> None:
        """Until no more orders come. Raises TeacherDiedError, CaskError, OSError; what was published stays."""
        while not (self._is_over or self._stops()):
            tasks = self._feed.tasks_as_they_come(self._chunks())
            self._stream(self._give(self._engine, tasks, self._spec))
            if (order := self._next_alone) is not None:
                self._next_alone = None
                self._one_by_one(order)
        self._publisher.finish()
        if not self._dropped.is_set():
            self._attempt(self._writer.close)

    def close(self) -> None:
        """End the publishing thread after what it was given."""
        self._publisher.join()

    def _chunks(self) -> Iterator[Chunk | None]:
        """Chunks of orders as they come, until one that wants the teacher for itself."""
        while not self._stops():
            try:
                order = self._next_order(wait=not self._feed.waiting)
            except queue.Empty:
                yield None
                continue  # what was published last may have failed meanwhile
            if order is None:
                self._is_over = True
                return
            self._left_out |= order.left_out
            if order.alone:
                self._next_alone = order
                return
            yield order.chunk

    def _one_by_one(self, order: ChunkOrder) -> None:
        """Every document alone with the teacher, a suspected one first."""
        if order.suspect is not None:
            self._suspicion.suspect(_NO_JOB, order.suspect)
            task = capture_task(self._tokens, order.suspect)
            self._streams.try_suspect(self._engine.capture([task], self._spec))
            self._suspicion.clear()
        self._streams.one_by_one(
            self._feed.tasks([order.chunk]),
            deaths=order.chunk.deaths,
            stream=lambda task: self._stream(self._engine.capture([task], self._spec)),
            stops=self._stops,
        )

    def _stream(self, results: Iterable[CaptureResult]) -> None:
        self._streams.take_each(iter(results), self._take, stops=self._stops)
        if self._feed.fault is not None:
            raise self._feed.fault
        if self._feed.waiting and not self._stops():
            raise TeacherDiedError(f"the engine ended its stream without {self._feed.waiting} of the documents it took")

    def _take(self, result: CaptureResult) -> None:
        failed = self._feed.accept(result)
        if failed is None:
            assert result.document is not None  # accept said so
            self._untold_tokens += len(result.document.token_ids_L)
            # Of documents alone each is told: it may be the last one before the teacher dies.
            if (now := time.monotonic()) - self._told > TELL_SECONDS or self._streams.is_alone:
                self._tell_tokens(now)
        elif self._holds_failed:  # otherwise it is told with its chunk
            assert isinstance(result.key, int)  # our own key
            self._say(DocumentFailed(document=result.key, code=failed[0], message=failed[1]))

    def _tell_tokens(self, now: float) -> None:
        if self._untold_tokens:
            self._say(TokensCaptured(tokens=self._untold_tokens))
        self._untold_tokens, self._told = 0, now

    def _stops(self) -> bool:
        return self._dropped.is_set() or self._publisher.error is not None

    def _release(self, entry: OpenChunk) -> None:
        # Whoever asked ends with the document that failed; from its chunk on nothing of this worker is published.
        self._holds = self._holds or (self._holds_failed and bool(entry.failures))
        if self._holds:
            return
        self._tell_tokens(time.monotonic())
        with self._heartbeat.excused():  # a slow disk is no fault of the teacher's
            self._publisher.submit(entry)

    # -- in the publishing thread --------------------------------------------------------------------------------

    def _publish(self, entry: OpenChunk) -> None:
        began = time.monotonic()
        publication = publish_chunk(entry, self._tokens, self._writer, note=self._note, attempt=self._attempt)
        self._feed.settle(entry)
        self._tokens.release()
        self._say(
            ChunkDone(
                number=entry.chunk.number,
                captured_documents=len(publication.documents),
                captured_tokens=publication.tokens,
                returned_tokens=sum(len(document.token_ids_L) for document in entry.documents.values()),
                present=tuple(sorted((*entry.present, *publication.overtaken))),
                overtaken=bool(publication.overtaken),
                failures=tuple((document, *entry.failures[document]) for document in sorted(entry.failures)),
                shard=None if publication.shard is None else publication.shard.model_dump(mode="json"),
                beyond_tokens=beyond_tokens_of(entry.documents.values(), self._engine.identity),
                publish_seconds=time.monotonic() - began,
            )
        )
