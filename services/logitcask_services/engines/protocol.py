"""The engine protocol: token ids in, records out. The service knows nothing else of a teacher."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.identity import TeacherIdentity
from logitcask_schemas.records import DocumentRecords, IdArray


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureTask:
    """One document to capture. `key` is the caller's and comes back with the result."""

    key: Hashable
    token_ids_L: IdArray


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureResult:
    """The records of one task, or the reason the teacher could not give them (exactly one is set)."""

    key: Hashable
    document: DocumentRecords | None
    error: str | None = None


class Engine(Protocol):
    """A loaded teacher. Used from one thread at a time."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is."""
        ...

    @property
    def max_model_len(self) -> int:
        """Most tokens a document may have."""
        ...

    def capture(self, tasks: Iterable[CaptureTask], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """Yield one result per task, in order of completion.

        Tasks are drawn from the iterable as the engine has room, so it may be long or slow. Closing the generator
        aborts what is in flight. A fault of one document is its result's error; a dead engine raises.

        Raises:
            CaptureSpecError: at the first result, where the spec asks for what this teacher cannot give.
        """
        ...

    def interrupt(self) -> bool:
        """Called from another thread: end the engine's own processes, so that a blocked `capture` raises.

        Returns:
            False where the engine computes in this process and cannot be interrupted.
        """
        ...

    def close(self) -> None:
        """Free the teacher's memory and processes. Idempotent."""
        ...
