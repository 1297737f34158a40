"""What a client asks of every kind of job in the same way: its failures, and its log as it goes on; as flows."""

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from logitcask_schemas.api.exchange import (
    BUSY,
    Answer,
    Flow,
    Item,
    ItemFlow,
    Next,
    Open,
    Pause,
    Request,
    ServiceError,
    ServiceUnreachableError,
    collected,
    getting,
    opened,
    posting,
    require_success,
)
from logitcask_schemas.api.generation import Generation
from logitcask_schemas.api.objects import FINAL, ApiObject, Event, Extraction, Failure, Status

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
"""Seconds between two tries of `follow` to connect."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
NO_CONTENT: Final = 204


J = TypeVar("J", Extraction, Generation)
P = TypeVar("P", bound=ApiObject)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCalls(Generic[J, P]):
    """Calls about jobs of one kind. Each raises ServiceError and ServiceUnreachableError, as those of the client."""

    noun: str
    kind: type[J]
    progress: type[P]
    listing: str
    """The command that lists them."""
    patience_seconds: float
    """How long `follow` waits for a service that does not answer."""

    def path(self, job_id: str, rest: str = "") -> str:
        """Where a job is. Raises ServiceError where no job can have this id."""
        if _ID.fullmatch(job_id) is None:  # such as nothing, from a variable of a shell that is not set
            raise ServiceError(
                404,
                "not_found",
                f"{job_id[:80]!a} is no {self.noun}'s id; `{self.listing}` lists those there are",
            )
        return f"/v1/{self.noun}s/{job_id}{rest}"

    def create(self, request: Mapping[str, Any], idempotency_key: str | None) -> Flow[J]:
        """Start a job; a connection lost meanwhile does not start it twice."""
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return posting(self.kind, f"/v1/{self.noun}s", request, headers=headers)

    def get(self, job_id: str) -> Flow[J]:
        """One job."""
        return getting(self.kind, self.path(job_id))

    def pages(
        self, page: Callable[[Mapping[str, Any]], Flow[tuple[list[J], bool]]], status: Status | None, limit: int
    ) -> Flow[list[J]]:
        """The newest jobs; `page` asks for one page and says whether there are more."""
        chosen = {"status": status} if status else {}
        return collected(lambda params: page({**params, **chosen}), limit)

    def post(self, job_id: str, verb: str) -> Flow[J]:
        """`cancel`, `pause` or `resume` a job."""
        return posting(self.kind, self.path(job_id, f"/{verb}"))

    def set_priority(self, job_id: str, priority: int) -> Flow[J]:
        """Change the priority of a job that waits."""
        return posting(self.kind, self.path(job_id), {"priority": priority}, method="PATCH", repeatable=True)

    def move(self, job_id: str, before: str | None) -> Flow[J]:
        """Put a waiting job before another one, or before all."""
        return posting(self.kind, self.path(job_id, "/move"), {"before": before}, repeatable=True)

    def failures(self, job_id: str) -> ItemFlow[Failure]:
        """What did not make it, and why."""
        yield from opened(Request(method="GET", path=self.path(job_id, "/errors")))
        rest = b""
        while (block := (yield Next())) is not None:
            assert isinstance(block, bytes)
            # At line ends alone: text has other characters that end a line, and JSON may hold them.
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield Item(Failure.model_validate_json(line))
        if rest:
            yield Item(Failure.model_validate_json(rest))

    def follow(self, job_id: str) -> ItemFlow[Event | P]:
        """Events until the job has ended, and progress between them. Reconnects from the last event seen.

        Raises ServiceError, and ServiceUnreachableError after `patience_seconds` without an answer.
        """
        last_id = ""
        pause, lost_at = FIRST_PAUSE, None
        while True:
            try:
                has_stream = yield from self._opened(job_id, last_id)
                while has_stream and (received := (yield Next(as_events=True))) is not None:
                    assert isinstance(received, tuple)
                    number, kind, text = received
                    if not text:
                        continue
                    event = (self.progress if kind == "progress" else Event).model_validate_json(text)
                    last_id, lost_at, pause = number or last_id, None, FIRST_PAUSE
                    yield Item(event)
                    # The log of one that was resumed holds an earlier end.
                    is_end = isinstance(event, Event) and event.type == "status" and event.data["status"] in FINAL
                    if is_end and (yield from self._has_ended(job_id)):
                        return
                if (yield from self._has_ended(job_id)):
                    return
            except (ServiceUnreachableError, ServiceError) as error:
                if isinstance(error, ServiceError) and error.status not in BUSY:
                    raise
                now = time.monotonic()
                lost_at = lost_at if lost_at is not None else now
                if now - lost_at > self.patience_seconds:
                    raise ServiceUnreachableError(
                        f"the service has not answered for {self.patience_seconds:g} s ({error}); the "
                        f"{self.noun} goes on when the service does: `logitcask jobs watch {job_id}`"
                    ) from error
            yield Pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _opened(self, job_id: str, last_id: str) -> Flow[bool]:
        """Open the stream of events after the one with this id (empty: all); False where there are no more."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        answer = yield Open(Request(method="GET", path=self.path(job_id, "/events"), headers=headers))
        assert isinstance(answer, Answer)
        require_success(answer)
        return answer.status != NO_CONTENT

    def _has_ended(self, job_id: str) -> Flow[bool]:
        job = yield from self.get(job_id)
        return job.status in FINAL
