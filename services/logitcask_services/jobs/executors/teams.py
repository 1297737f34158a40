"""Many engines behind a service: who they are, and how their workers go about its jobs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.engines.engine import CaptureResult, CaptureTask, Engine
from logitcask_services.engines.process.fleet import EngineState
from logitcask_services.jobs.executors.chunk_orders import CaptureJob, WorkerPool

StreamTasks = Callable[[Engine, Iterable[CaptureTask | None], CaptureSpec], Iterator[CaptureResult]]


def _engine_alone(engine: Engine, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
    return engine.capture(tasks, spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerManners:
    """How a worker goes about its work; by itself, as long as nobody says otherwise."""

    stream: StreamTasks = _engine_alone
    """How chunks that are under no suspicion are given to the engine: others may be let in between."""
    attempt: Callable[[Callable[[], Any]], Any] | None = None
    """Does what the disk, the store or another writer may refuse for a while; None: the worker's own patience, with
    stores alone. Raises StoppedWhileWaitingError.
    """
    hang_seconds: float | None = None
    """Silence of the teacher after which it counts as dead; None: by what can be seen of it; 0: never."""
    load_seconds: float = 3600.0
    """Longest time that a teacher may take to load; 0: any."""


class WorkerTeam(Protocol):
    """Engines that capture for a service, besides the one that it asks for all else."""

    @property
    def size(self) -> int:
        """Engines at once."""
        ...

    @property
    def states(self) -> list[EngineState]:
        """What each engine is at."""
        ...

    def pool(self, job: CaptureJob, manners: WorkerManners) -> WorkerPool:
        """Workers for one job. Raises CaptureStoppedError where there can be none now.

        Args:
            job: what is captured.
            manners: of workers in this process; others have their own.
        """
        ...
