"""What callers ask of the job store, and what a chunk's end tells it: plain values between the layers."""

from dataclasses import dataclass, field
from typing import Any, Literal

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.corpora.overflow import Overflow

OnError = Literal["skip", "fail"]
CarrierName = Literal["arrow", "zarr", "parquet"]


class NotFoundError(LogitcaskError, LookupError):
    """There is no object of this kind with this id."""

    def __init__(self, kind: str, object_id: str) -> None:
        super().__init__(f"there is no {kind} {object_id!r}; GET the list for those there are")
        self.kind = kind


class IdempotencyConflictError(LogitcaskError, ValueError):
    """An Idempotency-Key came back with another request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """A caller's key for one request of one operation."""

    scope: str
    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionRequest:
    """A checked request for an extraction."""

    corpus_id: str
    cask: str
    capture: dict[str, Any]
    max_length: int | None
    overflow: Overflow
    carrier: CarrierName
    on_error: OnError
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFailure:
    """A document the teacher could not capture."""

    document: int
    line: int
    custom_id: str | None
    code: str
    message: str


@dataclass(slots=True, kw_only=True)
class ChunkOutcome:
    """What became of a chunk's documents."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    """Entries of the shards that were published for it: one, none, or two after a crash and a failed document."""
    captured_documents: int = 0
    captured_tokens: int = 0
    present_documents: int = 0
    """In the cask already, or twice in the corpus."""
    failures: list[DocumentFailure] = field(default_factory=list)
    known_failures: int = 0
    """Documents that were noted as failed before this run, and not given to the teacher."""
    seconds: float = 0.0
    """Capture time since the previous chunk's end."""
