"""What callers ask of the job store, and what a chunk's end tells it: plain values between the layers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.api.objects import Failure, Status
from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.record.beyond_tokens import BeyondTokens
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.hint_shape import HintShape, hint_bytes_per_document, hint_bytes_per_position

STEPS: dict[Status, frozenset[Status]] = {
    "validating": frozenset({"queued", "failed", "pausing", "cancelling"}),
    "queued": frozenset({"in_progress", "failed", "paused", "cancelled"}),
    "in_progress": frozenset({"finalizing", "queued", "failed", "pausing", "cancelling"}),
    "finalizing": frozenset({"completed", "queued", "failed"}),
    "pausing": frozenset({"paused", "failed", "cancelling"}),
    "paused": frozenset({"queued", "validating", "cancelled"}),
    "cancelling": frozenset({"cancelled"}),
    "completed": frozenset(),
    "failed": frozenset({"queued", "validating"}),
    "cancelled": frozenset(),
}
MOVABLE: frozenset[Status] = frozenset({"validating", "queued", "pausing", "paused"})
"""States whose jobs have a place in the queue that can be changed."""


class IllegalTransitionError(LogitcaskError, ValueError):
    """A job cannot go from where it is to where it was told to go."""

    def __init__(self, job_id: str, current: str, target: str) -> None:
        hint = "; only a failed or paused one can be resumed" if target in ("validating", "queued") else ""
        super().__init__(f"{job_id} is {current} and cannot become {target}{hint}")
        self.current = current
        self.target = target


def check_step(job_id: str, current: Status, target: Status) -> None:
    """Raise IllegalTransitionError unless `target` may follow `current`."""
    if target not in STEPS[current]:
        raise IllegalTransitionError(job_id, current, target)


def check_resumable(job_id: str, current: Status) -> None:
    """Raise IllegalTransitionError unless a caller may resume the job; the table lets others queue it again, too."""
    if current not in ("failed", "paused"):
        raise IllegalTransitionError(job_id, current, "queued")


_LISTED: Mapping[str, str] = {
    "corpus": "GET /v1/corpora lists them",
    "extraction": "`logitcask jobs ls` (GET /v1/extractions) lists them",
    "generation": "`logitcask generate ls` (GET /v1/generations) lists them",
    "upload": "the answer to POST /v1/uploads names it",
    "batch": "GET /v1/batches lists them",
    "file": "GET /v1/files lists them",
}


class NotFoundError(LogitcaskError, LookupError):
    """There is no object of this kind with this id."""

    def __init__(self, kind: str, object_id: str) -> None:
        super().__init__(f"there is no {kind} {object_id!r}; {_LISTED[kind]}")
        self.kind = kind


class IdempotencyConflictError(LogitcaskError, ValueError):
    """An Idempotency-Key came back with another request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """A caller's key for one request of one operation."""

    scope: str
    key: str
    fingerprint: str


@dataclass(slots=True, kw_only=True)
class ChunkOutcome:
    """What became of a chunk's documents."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    """Entries of the shards that were published for it: one, none, or two after a crash and a failed document."""
    captured_documents: int = 0
    captured_tokens: int = 0
    present_documents: int = 0
    """In the cask already, or twice in the corpus."""
    failures: list[Failure] = field(default_factory=list)
    earlier_failures: int = 0
    """Documents that were noted as failed before this run, and not given to the teacher."""
    beyond_tokens: BeyondTokens | None = None
    """Of the captured documents, where the teacher has ids beyond its tokenizer's."""
    seconds: float = 0.0
    """Capture time since the previous chunk's end."""


SHARE, SMALLEST, LARGEST = 64, 4096, 8 << 20
"""A chunk is 1/64 of the corpus, within bounds in positions: a crash costs at most about that much capture, a chunk's
fixed cost (about 10 ms of CPU, five flushes) stays small beside it, and a trillion tokens stay near a hundred thousand
shards."""
MAX_DOCUMENTS = 4096
"""A document that waits for its shard takes some 2 kB beside its records: chunks of short ones are bounded, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Documents first_document .. first_document + documents - 1."""

    number: int
    first_document: int
    documents: int
    tokens: int
    deaths: int = 0


def chunk_budget(positions: int) -> int:
    """Positions per chunk for a corpus of that many."""
    return min(max(positions // SHARE, SMALLEST), LARGEST)


HINT_CHUNK_BYTES = 256 << 20
"""Of hints in a chunk at most: a chunk is held in memory until it is published, twice while its file is made."""


def hinted_budget(positions: int, bytes_per_position: float, *, budget: int | None = None) -> int | None:
    """Positions per chunk where each has hints of so many bytes; None: as without.

    Args:
        positions: Of the corpus.
        bytes_per_position: Of hints.
        budget: What the operator sets.
    """
    if not bytes_per_position:
        return budget
    return min(budget or chunk_budget(positions), max(1, int(HINT_CHUNK_BYTES / bytes_per_position)))


def hinted_documents(bytes_per_document: int) -> int:
    """Documents per chunk where each has hints of so many bytes; 0: as without."""
    return min(MAX_DOCUMENTS, max(1, HINT_CHUNK_BYTES // max(bytes_per_document, 1)))


def planned_chunks(
    offsets_D1: NDArray[np.uint64], hints: HintSpec | None, shape: HintShape | None, budget: int | None
) -> list[Chunk]:
    """The plan of an extraction: that of `plan_chunks`, with chunks small enough for the hints of their documents.

    Args:
        offsets_D1: document offsets in tokens, [D + 1].
        hints: what is kept of hidden states, if anything.
        shape: what the teacher's hints are like; None where it gives none.
        budget: positions per chunk, where the operator sets them.
    """
    positions = int(offsets_D1[-1]) - (len(offsets_D1) - 1)
    positions_budget = hinted_budget(positions, hint_bytes_per_position(hints, shape), budget=budget)
    most = hinted_documents(hint_bytes_per_document(hints, shape))
    return list(plan_chunks(offsets_D1, positions_budget, most))


def plan_chunks(
    offsets_D1: NDArray[np.uint64], budget: int | None = None, most_documents: int = MAX_DOCUMENTS
) -> Iterator[Chunk]:
    """Chunks of at most `budget` positions and `most_documents` documents (one at least), in corpus order, over all.

    offsets_D1: [D + 1] document offsets in tokens; a document of L tokens has L - 1 positions.
    """
    documents = len(offsets_D1) - 1
    limit = chunk_budget(int(offsets_D1[-1]) - documents) if budget is None else budget
    first = number = 0
    while first < documents:
        window = offsets_D1[first : first + most_documents + 1].astype(np.int64)
        positions = window - window[0] - np.arange(len(window))
        stop = first + max(int(np.searchsorted(positions, limit, side="right")) - 1, 1)
        yield Chunk(
            number=number,
            first_document=first,
            documents=stop - first,
            tokens=int(offsets_D1[stop]) - int(offsets_D1[first]),
        )
        first, number = stop, number + 1


ISOLATE_AFTER_DEATHS = 2
"""A chunk in whose company the teacher died this often is captured one document at a time, to find the culprit."""


class HasDeaths(Protocol):
    """A chunk of whichever kind of job."""

    @property
    def deaths(self) -> int:
        """How often the teacher died while it worked on the chunk."""
        ...


ChunkT = TypeVar("ChunkT", bound=HasDeaths)


def is_isolated(chunk: HasDeaths) -> bool:
    """Whether the chunk is under suspicion."""
    return chunk.deaths >= ISOLATE_AFTER_DEATHS


def segments(chunks: Sequence[ChunkT], *, each_alone: bool = False) -> Iterator[list[ChunkT]]:
    """Runs of chunks to work on together; a chunk under suspicion stands alone, with `each_alone` every one."""
    together: list[ChunkT] = []
    for chunk in chunks:
        if each_alone or is_isolated(chunk):
            if together:
                yield together
            yield [chunk]
            together = []
        else:
            together.append(chunk)
    if together:
        yield together
