"""One engine that captures chunks as they are handed to it, and publishes a shard for each.

Its stream stays open from one chunk to the next, so that nothing drains between them. Several such workers, in
processes and on machines that do not know each other, fill one cask: a chunk's shard has the same bytes and the same
name whoever makes it.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.cask.format.manifest import EXTENT_VERSION, FORMAT_VERSION
from logitcask_schemas.errors import CaptureSpecError, LogitcaskError, StoreError
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.engines.engine import CaptureResult, Engine, EngineError, require_hints
from logitcask_services.engines.process.process import interrupt_loading
from logitcask_services.engines.process.progress import ShowsSteps
from logitcask_services.jobs.chunks import ChunkFeed, OpenChunk, Publisher, capture_task
from logitcask_services.jobs.executors.chunk_orders import (
    CaptureJob,
    ChunkDone,
    ChunkOrder,
    TeacherReady,
    WorkerEnded,
    WorkerEvent,
)
from logitcask_services.jobs.extraction import Chunk
from logitcask_services.jobs.live import Heartbeat
from logitcask_services.jobs.setbacks import Suspicion
from logitcask_services.jobs.teacher import TeacherDiedError
from logitcask_services.jobs.teacher_streams import TeacherStreams
from logitcask_services.jobs.waiting import LONGEST_PAUSE
from logitcask_services.jobs.watchdog import BLIND_HANG_SECONDS, HANG_SECONDS

logger = logging.getLogger(__name__)
LoadEngine = Callable[[], Engine]
LOAD_SECONDS: Final = 3600.0
"""Longest time that a teacher may take to load."""
STORE_PATIENCE_SECONDS: Final = 900.0
"""Longest time that an object store may be away before the capture ends; what is published stays."""
FIRST_PAUSE: Final = 1.0
"""Seconds until the store is tried again, which doubles up to `jobs.waiting.LONGEST_PAUSE`."""
_LOOK_SECONDS: Final = 0.5
_NO_JOB: Final = ""


class ChunkWorker(threading.Thread):
    """Loads its engine, works until it is told to end, and says what happens. `run` is the thread's, the rest for all.

    Args:
        job: what is captured.
        load: loads the engine, with the hints of the job's spec.
        say: hears of each event, from whichever thread.
    """

    def __init__(self, job: CaptureJob, load: LoadEngine, say: Callable[[WorkerEvent], None]) -> None:
        super().__init__(name="logitcask-chunk-worker", daemon=True)
        self._job = job
        self._load = load
        self._say = say
        self._orders: queue.SimpleQueue[ChunkOrder | None] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._heartbeat = Heartbeat()
        self._dropped = threading.Event()

    def give(self, order: ChunkOrder) -> None:
        """Capture one more chunk, after those that were given before."""
        self._orders.put(order)

    def finish(self) -> None:
        """End when everything that was given is published."""
        self._orders.put(None)

    def drop(self) -> None:
        """End now: what is with the teacher is lost."""
        self._dropped.set()
        self._orders.put(None)
        if (engine := self._engine) is not None:
            engine.interrupt()
        elif self.ident is not None:
            interrupt_loading(self.ident)

    def interrupt_if_overdue(self) -> None:
        """End the processes of a teacher that shows no life, so that it counts as dead; as the service's watchdog."""
        engine, silence = self._engine, self._heartbeat.silence
        if engine is None:
            if silence > LOAD_SECONDS and self.ident is not None:
                logger.error("the teacher did not load within %g s", LOAD_SECONDS)
                interrupt_loading(self.ident)
            return
        limit = BLIND_HANG_SECONDS
        if isinstance(engine, ShowsSteps):
            limit, silence = HANG_SECONDS, min(silence, engine.step_silence)
        if silence > limit:
            logger.error("the teacher has shown no life for %.0f s", silence)
            engine.interrupt()
            self._heartbeat.beat()

    def run(self) -> None:
        """See the class."""
        ended = WorkerEnded(reason="")
        try:
            with self._heartbeat.expected():
                self._engine = self._load()
            ended = self._capture(self._engine)
        except EngineError as error:
            ended = WorkerEnded(reason=f"the teacher could not be loaded: {error}")
        except LogitcaskError as error:
            ended = WorkerEnded(reason=str(error), refused=True)
        except Exception as error:  # an engine may fail in any way; whoever hands out chunks decides
            logger.exception("the worker failed")
            ended = WorkerEnded(reason=f"the worker failed: {type(error).__name__}: {error}")
        finally:
            if self._engine is not None:
                self._engine.close()
            self._say(ended)

    def _capture(self, engine: Engine) -> WorkerEnded:
        capture = _Capture(self._job, engine, self._heartbeat, self._next_order, self._dropped, self._say)
        try:
            capture.go()
        except TeacherDiedError as error:
            return WorkerEnded(
                reason=f"the teacher died: {error}", open_chunks=capture.open_chunks, document=capture.culprit
            )
        except (LogitcaskError, OSError) as error:
            return WorkerEnded(reason=str(error), refused=True)
        finally:
            capture.close()
        return WorkerEnded(reason="")

    def _next_order(self, *, wait: bool) -> ChunkOrder | None:
        """The next one; None: no more will come. Raises queue.Empty where there is none now, or none after a while."""
        if not wait:
            return self._orders.get_nowait()
        with self._heartbeat.excused():
            return self._orders.get(timeout=_LOOK_SECONDS)


class _Capture:
    """The work of one loaded engine; all of it is the worker thread's but publishing."""

    def __init__(
        self,
        job: CaptureJob,
        engine: Engine,
        heartbeat: Heartbeat,
        next_order: Callable[..., ChunkOrder | None],
        dropped: threading.Event,
        say: Callable[[WorkerEvent], None],
    ) -> None:
        self._engine = engine
        self._spec = job.spec
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
            accept=job.accept,
            version=EXTENT_VERSION if job.needs_extents else FORMAT_VERSION,
            single_writer=job.single_writer,
        )
        if job.needs_extents:
            self._writer.manifest.require_extents(str(job.cask), "this corpus has")
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
        self._is_over = False
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
            self._stream(self._engine.capture(self._feed.tasks_as_they_come(self._chunks()), self._spec))
            if (order := self._next_alone) is not None:
                self._next_alone = None
                self._one_by_one(order)
        self._publisher.finish()
        if not self._dropped.is_set():
            self._patiently(self._writer.close)

    def close(self) -> None:
        """End the publishing thread after what it was given."""
        self._publisher.join()

    def _chunks(self) -> Iterator[Chunk | None]:
        """Chunks of orders as they come, until one that wants the teacher for itself."""
        while not self._stops():
            waiting = self._feed.waiting
            try:
                order = self._next_order(wait=not waiting)
            except queue.Empty:
                if waiting:
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
        self._feed.accept(result)  # what failed is told with its chunk

    def _stops(self) -> bool:
        return self._dropped.is_set() or self._publisher.error is not None

    def _release(self, entry: OpenChunk) -> None:
        with self._heartbeat.excused():  # a slow disk is no fault of the teacher's
            self._publisher.submit(entry)

    def _patiently(self, work: Callable[[], object]) -> None:
        """Do what may be repeated, again while the store of the cask is away: the teacher took long to load."""
        until, pause = time.monotonic() + STORE_PATIENCE_SECONDS, FIRST_PAUSE
        while True:
            try:
                work()
            except StoreError as error:
                logger.warning("the capture waits: %s", error)
                if time.monotonic() > until or self._dropped.wait(pause):
                    raise
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return

    # -- in the publishing thread --------------------------------------------------------------------------------

    def _publish(self, entry: OpenChunk) -> None:
        captured = [
            replace(entry.documents[document], answer_ranges_R2=self._tokens.answers(document))
            for document in sorted(entry.documents)
        ]
        if captured:
            self._patiently(lambda: self._writer.publish(captured))
        self._feed.settle(entry)
        self._tokens.release()
        self._say(
            ChunkDone(
                number=entry.chunk.number,
                captured_documents=len(captured),
                captured_tokens=sum(len(document.token_ids_L) for document in captured),
                present_documents=len(entry.present),
                failures=tuple((document, *entry.failures[document]) for document in sorted(entry.failures)),
            )
        )
