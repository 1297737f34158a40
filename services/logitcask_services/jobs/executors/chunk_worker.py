"""One engine that captures chunks as they are handed to it, and publishes a shard for each.

Its stream stays open from one chunk to the next, so that nothing drains between them. Several such workers, in
processes and on machines that do not know each other, fill one cask: a chunk's shard has the same bytes and the same
name whoever makes it.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from logitcask_schemas.errors import LogitcaskError, StoreError
from logitcask_services.engines.engine import Engine, EngineError
from logitcask_services.engines.process.loads import interrupt_loading
from logitcask_services.engines.process.progress import ShowsSteps
from logitcask_services.jobs.executors.chunk_capture import ChunkCapture
from logitcask_services.jobs.executors.chunk_orders import (
    CaptureJob,
    ChunkOrder,
    WorkerEnded,
    WorkerEvent,
    WorkerManners,
)
from logitcask_services.jobs.live import Heartbeat
from logitcask_services.jobs.setbacks import TeacherDiedError
from logitcask_services.jobs.waiting import LONGEST_PAUSE, StoppedWhileWaitingError, passing_fault
from logitcask_services.jobs.watchdog import BLIND_HANG_SECONDS, HANG_SECONDS

logger = logging.getLogger(__name__)
LoadEngine = Callable[[], Engine]
IDLE_SECONDS: Final = 0.25
"""After which an engine without a chunk is told that there is none just now."""
STORE_PATIENCE_SECONDS: Final = 900.0
"""Longest time that an object store may be away before the capture ends; what is published stays."""
FIRST_PAUSE: Final = 1.0
"""Seconds until the store is tried again, which doubles up to `jobs.waiting.LONGEST_PAUSE`."""


class ChunkWorker(threading.Thread):
    """Loads its engine, works until it is told to end, and says what happens. `run` is the thread's, the rest for all.

    Args:
        job: what is captured.
        load: loads the engine, with the hints of the job's spec.
        say: hears of each event, from whichever thread.
        manners: how it goes about that.
    """

    def __init__(
        self,
        job: CaptureJob,
        load: LoadEngine,
        say: Callable[[WorkerEvent], None],
        manners: WorkerManners | None = None,
    ) -> None:
        super().__init__(name="logitcask-chunk-worker", daemon=True)
        self._job = job
        self._load = load
        self._say = say
        self._manners = manners or WorkerManners()
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

    @property
    def is_loading(self) -> bool:
        """Whether its engine is not there yet."""
        return self._engine is None

    def drop(self, *, spares_engine: bool = False) -> None:
        """End soon: what is with the teacher is lost.

        Args:
            spares_engine: let an engine that is loaded end its step, as others need it again.
        """
        self._dropped.set()
        self._orders.put(None)
        if (engine := self._engine) is None:
            if self.ident is not None:
                interrupt_loading(self.ident)
        elif not spares_engine:
            engine.interrupt()

    def interrupt_if_overdue(self) -> None:
        """End the processes of a teacher that shows no life, so that it counts as dead; as the service's watchdog."""
        engine, silence = self._engine, self._heartbeat.silence
        if engine is None:
            limit = self._manners.load_seconds
            if silence > limit > 0 and self.ident is not None:
                logger.error("the teacher did not load within %g s", limit)
                interrupt_loading(self.ident)
            return
        limit = BLIND_HANG_SECONDS
        if isinstance(engine, ShowsSteps):
            limit, silence = HANG_SECONDS, min(silence, engine.step_silence)
        if self._manners.hang_seconds is not None:
            limit = self._manners.hang_seconds
        if silence > limit > 0:
            logger.error("the teacher has shown no life for %.0f s", silence)
            engine.interrupt()
            self._heartbeat.beat()

    def run(self) -> None:
        """See the class."""
        ended = WorkerEnded(reason="")
        try:
            if not self._dropped.is_set():
                with self._heartbeat.expected():
                    self._engine = self._load()
                ended = self._capture(self._engine)
        except EngineError as error:
            ended = WorkerEnded(reason=f"the teacher could not be loaded: {error}")
        except LogitcaskError as error:
            ended = _refused(error)
        except StoppedWhileWaitingError:
            ended = WorkerEnded(reason="")
        except Exception as error:  # an engine may fail in any way; whoever hands out chunks decides
            logger.exception("the worker failed")
            ended = WorkerEnded(reason=f"the worker failed: {type(error).__name__}: {error}")
            if self._engine is not None:
                self._engine.interrupt()
        finally:
            self._close_engine()
            self._say(ended)

    def _close_engine(self) -> None:
        try:
            if self._engine is not None:
                self._engine.close()
        except Exception:  # an engine may fail in any way; whoever waits for this worker must hear of its end
            logger.warning("closing the teacher failed", exc_info=True)

    def _capture(self, engine: Engine) -> WorkerEnded:
        try:
            capture: ChunkCapture = self._attempt(
                lambda: ChunkCapture(
                    self._job,
                    engine,
                    self._heartbeat,
                    self._next_order,
                    self._dropped,
                    self._say,
                    self._manners.stream,
                    self._attempt,
                )
            )
        except OSError as error:
            return _refused(error)
        try:
            capture.go()
        except TeacherDiedError as error:
            engine.interrupt()  # nobody works with it again, whatever it died of
            return WorkerEnded(
                reason=f"the teacher died: {error}", open_chunks=capture.open_chunks, document=capture.culprit
            )
        except (LogitcaskError, OSError) as error:
            return _refused(error)
        finally:
            capture.close()
        return WorkerEnded(reason="")

    def _attempt(self, work: Callable[[], Any]) -> Any:
        """Do what may be repeated, again while disk, store or another writer refuses it and this worker is wanted."""
        if self._manners.attempt is None:
            return self._patiently(work)
        return self._manners.attempt(work, self._dropped.is_set)

    def _patiently(self, work: Callable[[], Any]) -> Any:
        """The same where nobody else waits: while the store of the cask is away, as the teacher took long to load."""
        until, pause = time.monotonic() + STORE_PATIENCE_SECONDS, FIRST_PAUSE
        while True:
            try:
                return work()
            except StoreError as error:
                logger.warning("the capture waits: %s", error)
                if time.monotonic() > until or self._dropped.wait(pause):
                    raise
                pause = min(2 * pause, LONGEST_PAUSE)

    def _next_order(self, *, wait: bool) -> ChunkOrder | None:
        """The next one, waited for a moment or not; None: no more will come. Raises queue.Empty where there is none."""
        if not wait:
            return self._orders.get_nowait()
        with self._heartbeat.excused():
            return self._orders.get(timeout=IDLE_SECONDS)


def _refused(error: LogitcaskError | OSError) -> WorkerEnded:
    return WorkerEnded(reason=str(error), refused=True, passing=passing_fault(error), error=error)
