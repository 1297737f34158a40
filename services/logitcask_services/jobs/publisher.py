"""The thread that makes whole chunks durable: publish the shard, then commit the transaction, then the next.

A crash between the two is harmless: the shard's name comes from its content, and its documents are found in the cask.
A full disk is waited out. The queue is short, so a slow disk slows the teacher down instead of filling the memory.
"""

import queue
import threading
from collections.abc import Callable

from logitcask_services.jobs.feed import OpenChunk

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
