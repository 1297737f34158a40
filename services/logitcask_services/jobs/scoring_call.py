"""One caller's request to score: what it waits for, how it can be refused, and how much may be asked."""

import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.record.records import DocumentRecords

RefusalCode = Literal[
    "request_too_large",
    "too_much_waiting",
    "teacher_died",
    "teacher_failed",
    "teacher_cannot_capture",
    "capture_failed",
    "kills_teacher",
    "stopping",
]


class ScoringRefusedError(LogitcaskError, RuntimeError):
    """A call that was not, or will not be, answered with records."""

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code: RefusalCode = code


def stopping() -> ScoringRefusedError:
    """That the service stops."""
    return ScoringRefusedError("stopping", "the service stops; try again when it is back")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringLimits:
    """What may wait. Tokens are those that the teacher reads, contexts included."""

    request_sequences: int = 1024
    request_tokens: int = 1 << 17
    waiting_tokens: int = 1 << 19
    """Of all callers together."""

    def require_size(self, sequences: int, tokens: int) -> None:
        """Raise ScoringRefusedError where a request is too large, whatever waits."""
        if sequences > self.request_sequences or tokens > self.request_tokens:
            raise ScoringRefusedError(
                "request_too_large",
                f"a request takes at most {self.request_sequences} sequences and {self.request_tokens} tokens, "
                f"this one has {sequences} and {tokens}; send it in parts",
            )

    def require_room(self, tokens: int, waiting: int) -> None:
        """Raise ScoringRefusedError where a request would be too much beside the tokens that wait."""
        if waiting + tokens > self.waiting_tokens:
            raise ScoringRefusedError(
                "too_much_waiting",
                f"{waiting} tokens wait to be scored, and with these {tokens} it would be more than "
                f"{self.waiting_tokens}; try again when some of them are done",
            )


class ScoringCounts:
    """What has been scored and refused since the service started. For all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sequences = self.tokens = 0
        self.refusals: Counter[str] = Counter()
        """Requests by the code that they were answered with."""

    def scored(self, tokens: int) -> None:
        """One more sequence, of so many tokens that the teacher read."""
        with self._lock:
            self.sequences += 1
            self.tokens += tokens

    def refused(self, code: str) -> None:
        """One more request that was not answered with records."""
        with self._lock:
            self.refusals[code] += 1


class ScoringCall:
    """One caller's sequences, until all have come back or one has failed."""

    def __init__(self, count: int) -> None:
        self.future: Future[list[DocumentRecords]] = Future()
        """The documents in the order of the sequences; or ScoringRefusedError."""
        self.future.set_running_or_notify_cancel()  # a caller that goes away says `Scoring.drop`
        self._lock = threading.Lock()
        self._documents: list[DocumentRecords | None] = [None] * count
        self._missing = count
        self.began_at: float | None = None
        """When the teacher took the first of its sequences, in seconds of the monotonic clock."""
        self.arrivals: list[tuple[float, int]] = []
        """When each sequence came back, and which one."""

    def begin(self) -> None:
        """The teacher takes one of its sequences."""
        if self.began_at is None:
            self.began_at = time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether nobody waits for more of it."""
        return self.future.done()

    def take(self, index: int, document: DocumentRecords) -> None:
        """The records of one sequence."""
        with self._lock:
            self.arrivals.append((time.monotonic(), index))
            self._documents[index] = document
            self._missing -= 1
            if not self._missing and not self.future.done():
                self.future.set_result([each for each in self._documents if each is not None])

    def fail(self, error: ScoringRefusedError) -> None:
        """It will not be answered; the first reason counts."""
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)
