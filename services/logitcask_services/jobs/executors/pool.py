"""Where workers run: what the driver of a capture needs of a place, whichever it is."""

from typing import Protocol

from logitcask_services.jobs.executors.chunk_orders import ChunkOrder, WorkerEvent


class WorkerPool(Protocol):
    """Workers by number. Used from one thread."""

    def start(self, worker: int) -> None:
        """Begin to load a worker; `TeacherReady` follows, or `WorkerEnded`."""
        ...

    def give(self, worker: int, order: ChunkOrder) -> None:
        """Hand a chunk to a worker."""
        ...

    def events(self, seconds: float) -> list[tuple[int, WorkerEvent]]:
        """What workers have said since, waited for so long at most. A worker that ended says nothing more."""
        ...

    def finish(self) -> None:
        """Let every worker end in order; returns when they have, or are lost."""
        ...

    def close(self) -> None:
        """End all that is left, at once."""
        ...
