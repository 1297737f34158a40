"""What the driver of a capture and its workers tell each other: plain values that travel well; and through what.

Workers stand in a pool, which is of one job; a service with many engines has a team, which gives a pool for each job.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from logitcask_schemas.api.requests import CarrierName
from logitcask_schemas.cask.writer import LOCK_TIMEOUT_SECONDS
from logitcask_schemas.record.beyond_tokens import BeyondTokens
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import Accept
from logitcask_services.engines.engine import CaptureResult, CaptureTask, Engine
from logitcask_services.engines.process.fleet import EngineState
from logitcask_services.jobs.extraction import Chunk
from logitcask_services.jobs.waiting import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureJob:
    """What every worker of one capture must know; its folders are the same ones wherever a worker runs."""

    tokens: Path
    """The token store."""
    cask: Path | str
    """Folder or URL."""
    spec: CaptureSpec
    """Its hints are resolved."""
    carrier: CarrierName = "arrow"
    needs_extents: bool = False
    """Whether the cask must hold documents that are recorded in part, or under a context."""
    accept: tuple[Accept, ...] = ()
    """What may differ between the cask's teacher and the one that is loaded."""
    lock_seconds: float = LOCK_TIMEOUT_SECONDS
    """How long to wait for another writer of the cask."""
    holds_failed: bool = False
    """Whether a chunk with a document that could not be captured is kept back, as whoever asks ends with it."""
    single_writer: bool = False
    """Of a URL: see `CaskWriter.create`."""
    ledger: Path | None = None
    """Where workers write down which shards they publish, see `ShardLedger`; None: nobody asks after they are dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOrder:
    """One chunk for one worker."""

    chunk: Chunk
    left_out: frozenset[int] = frozenset()
    """Documents of it that are none of its own: they occurred earlier in the corpus, or have failed."""
    alone: bool = False
    """Give the teacher one document at a time, to find out on which one it dies. The worker has no other chunk."""
    suspect: int | None = None
    """The document on which the teacher died when it had no other: to be tried before all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherReady:
    """A worker's teacher is loaded."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDone:
    """A chunk's shard is in the cask, durably, or it needed none."""

    number: int
    captured_documents: int
    """In the shard."""
    captured_tokens: int
    """Of these."""
    returned_tokens: int
    """Of all documents that came back from the teacher."""
    present: tuple[int, ...]
    """Documents that the cask had already."""
    overtaken: bool = False
    """Whether some of these came back from the teacher, and were published meanwhile by somebody else, or by a try
    whose answer was lost."""
    failures: tuple[tuple[int, str, str], ...]
    """Document, code and message of each that could not be captured."""
    shard: dict[str, Any] | None = None
    """The entry of the shard; None where there was nothing to publish."""
    beyond_tokens: BeyondTokens | None = None
    """What the records say of ids that are no tokens; None where the teacher has none."""
    publish_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensCaptured:
    """Documents of so many tokens have come back since the last time; their chunks are open still."""

    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFailed:
    """A document could not be captured, and its chunk is kept back; see `CaptureJob.holds_failed`."""

    document: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnded:
    """A worker that works no more."""

    reason: str
    """Empty where it was told to end."""
    refused: bool = False
    """Another worker would meet the same: a cask of another teacher, a full disk, a folder that is no model."""
    open_chunks: tuple[int, ...] = ()
    """With the teacher when that died; none where the worker was lost for another reason."""
    document: int | None = None
    """The only one that was with the teacher, where that is known."""
    passing: Reason | None = None
    """Of a fault that may pass by itself: code and sentence."""
    error: Exception | None = None
    """What was refused with, where the worker is in this process."""


WorkerEvent = TeacherReady | TokensCaptured | DocumentFailed | ChunkDone | WorkerEnded


class WorkerPool(Protocol):
    """Where workers run, whichever place it is: workers by number. Used from one thread."""

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
        """End all that is left, without waiting for what is with its teachers. Idempotent."""
        ...


StreamTasks = Callable[[Engine, Iterable[CaptureTask | None], CaptureSpec], Iterator[CaptureResult]]


def _engine_alone(engine: Engine, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
    return engine.capture(tasks, spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerManners:
    """How a worker goes about its work; by itself, as long as nobody says otherwise."""

    stream: StreamTasks = _engine_alone
    """How chunks that are under no suspicion are given to the engine: others may be let in between."""
    attempt: Callable[[Callable[[], Any], Callable[[], bool]], Any] | None = None
    """Does what the disk, the store or another writer may refuse for a while, until the worker is called off; None: the
    worker's own patience, with stores alone. Raises StoppedWhileWaitingError.
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

    @property
    def lets_callers_in(self) -> bool:
        """Whether its workers stream as `WorkerManners` says, so that callers are scored by them."""
        ...

    def pool(self, job: CaptureJob, manners: WorkerManners) -> WorkerPool:
        """Workers for one job. Raises CaptureStoppedError where there can be none now.

        Args:
            job: what is captured.
            manners: of workers in this process; others have their own.
        """
        ...
