"""Workers in this process, each with an engine in a process of its own."""

import queue
import time
from typing import Final

from logitcask_services.engines.process.fleet import EngineFleet, EngineState
from logitcask_services.jobs.executors.chunk_orders import (
    CaptureJob,
    ChunkOrder,
    WorkerEnded,
    WorkerEvent,
    WorkerManners,
)
from logitcask_services.jobs.executors.chunk_worker import ChunkWorker, LoadEngine

DROP_SECONDS: Final = 5.0
"""In which an engine that was interrupted lets its worker end."""
_LOOK_SECONDS: Final = 0.1


class LocalPool:
    """See `WorkerPool`.

    Args:
        job: what is captured.
        load: loads an engine, or borrows one.
        manners: of each worker.
        keeps_engines: whether engines that are well are needed again, as they are another's.
    """

    def __init__(
        self, job: CaptureJob, load: LoadEngine, manners: WorkerManners | None = None, *, keeps_engines: bool = False
    ) -> None:
        self._job = job
        self._load = load
        self._manners = manners
        self._keeps_engines = keeps_engines
        self._workers: dict[int, ChunkWorker] = {}
        self._events: queue.SimpleQueue[tuple[int, WorkerEvent]] = queue.SimpleQueue()

    def start(self, worker: int) -> None:
        """See `WorkerPool`."""
        thread = ChunkWorker(self._job, self._load, lambda event: self._events.put((worker, event)), self._manners)
        self._workers[worker] = thread
        thread.start()

    def give(self, worker: int, order: ChunkOrder) -> None:
        """See `WorkerPool`."""
        self._workers[worker].give(order)

    def events(self, seconds: float) -> list[tuple[int, WorkerEvent]]:
        """See `WorkerPool`."""
        self._interrupt_overdue()
        heard = list[tuple[int, WorkerEvent]]()
        try:
            heard.append(self._events.get(timeout=seconds))
            while True:
                heard.append(self._events.get_nowait())
        except queue.Empty:
            pass
        for worker, event in heard:
            if isinstance(event, WorkerEnded) and worker in self._workers:
                self._workers.pop(worker).join()
        return heard

    def finish(self) -> None:
        """See `WorkerPool`."""
        for thread in self._workers.values():
            if thread.is_loading:
                thread.drop(spares_engine=self._keeps_engines)  # it loads what nobody needs any more
            else:
                thread.finish()
        self._join()

    def close(self) -> None:
        """See `WorkerPool`. Where engines are kept, their steps are waited for, unless they hang."""
        for thread in self._workers.values():
            thread.drop(spares_engine=self._keeps_engines)
        self._join(None if self._keeps_engines else DROP_SECONDS)

    def _join(self, seconds: float | None = None) -> None:
        """Wait for all workers, an engine that hangs not for ever; at most so long for each, where that is given."""
        for thread in self._workers.values():
            until = None if seconds is None else time.monotonic() + seconds
            while thread.is_alive() and (until is None or time.monotonic() < until):
                thread.join(_LOOK_SECONDS)
                self._interrupt_overdue()
                if thread.is_loading:  # its load had not begun when it was dropped
                    thread.drop(spares_engine=self._keeps_engines)
        self._workers.clear()

    def _interrupt_overdue(self) -> None:
        for thread in self._workers.values():
            thread.interrupt_if_overdue()


class LocalTeam:
    """See `WorkerTeam`: the engines of a fleet, which are kept from one job to the next."""

    lets_callers_in = True

    def __init__(self, fleet: EngineFleet) -> None:
        self._fleet = fleet

    @property
    def size(self) -> int:
        """See `WorkerTeam`."""
        return self._fleet.size

    @property
    def states(self) -> list[EngineState]:
        """See `WorkerTeam`."""
        return self._fleet.states

    def pool(self, job: CaptureJob, manners: WorkerManners) -> LocalPool:
        """See `WorkerTeam`."""
        return LocalPool(job, self._fleet.lend, manners, keeps_engines=True)
