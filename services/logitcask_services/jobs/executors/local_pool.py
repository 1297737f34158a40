"""Workers in this process: one, whose engine has a process of its own."""

import queue
from typing import Final

from logitcask_services.jobs.executors.chunk_orders import CaptureJob, ChunkOrder, WorkerEnded, WorkerEvent
from logitcask_services.jobs.executors.chunk_worker import ChunkWorker, LoadEngine

DROP_SECONDS: Final = 5.0
"""In which an engine that was interrupted lets its worker end."""


class LocalPool:
    """See `WorkerPool`.

    Args:
        job: what is captured.
        load: loads an engine.
    """

    def __init__(self, job: CaptureJob, load: LoadEngine) -> None:
        self._job = job
        self._load = load
        self._workers: dict[int, ChunkWorker] = {}
        self._events: queue.SimpleQueue[tuple[int, WorkerEvent]] = queue.SimpleQueue()

    def start(self, worker: int) -> None:
        """See `WorkerPool`."""
        thread = ChunkWorker(self._job, self._load, lambda event: self._events.put((worker, event)))
        self._workers[worker] = thread
        thread.start()

    def give(self, worker: int, order: ChunkOrder) -> None:
        """See `WorkerPool`."""
        self._workers[worker].give(order)

    def events(self, seconds: float) -> list[tuple[int, WorkerEvent]]:
        """See `WorkerPool`."""
        for thread in self._workers.values():
            thread.interrupt_if_overdue()
        heard = list[tuple[int, WorkerEvent]]()
        try:
            heard.append(self._events.get(timeout=seconds))
            while True:
                heard.append(self._events.get_nowait())
        except queue.Empty:
            pass
        for worker, event in heard:
            if isinstance(event, WorkerEnded):
                self._workers.pop(worker).join()
        return heard

    def finish(self) -> None:
        """See `WorkerPool`."""
        for thread in self._workers.values():
            thread.finish()
        for thread in self._workers.values():
            thread.join()
        self._workers.clear()

    def close(self) -> None:
        """See `WorkerPool`."""
        for thread in self._workers.values():
            thread.drop()
        for thread in self._workers.values():
            thread.join(DROP_SECONDS)
        self._workers.clear()
