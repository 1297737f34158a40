"""What a client asks of every kind of job in the same way: its failures, and its log as it goes on."""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from logitcask_schemas.api.connection import Connection, ServiceError, ServiceUnreachableError
from logitcask_schemas.api.generation import Generation
from logitcask_schemas.api.objects import FINAL, ApiObject, Event, Extraction, Failure, Status

TRIES: Final = 3
PAUSE = 1.0
"""Seconds before what a broken connection cut off is tried again."""
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
"""Seconds between two tries of `follow` to connect."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


J = TypeVar("J", Extraction, Generation)
P = TypeVar("P", bound=ApiObject)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCalls(Generic[J, P]):
    """Calls about jobs of one kind. Each raises ServiceError and ServiceUnreachableError, as those of the client."""

    connection: Connection
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

    def create(self, request: Mapping[str, Any], idempotency_key: str | None) -> J:
        """Start a job; a connection lost meanwhile does not start it twice."""
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        for attempt in range(TRIES):
            try:
                return self.connection.post(self.kind, f"/v1/{self.noun}s", request, headers=headers)
            except ServiceUnreachableError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(PAUSE)
        raise AssertionError("unreachable")

    def get(self, job_id: str) -> J:
        """One job."""
        return self.connection.get(self.kind, self.path(job_id))

    def pages(
        self, page: Callable[[Mapping[str, Any]], tuple[Sequence[J], bool]], status: Status | None, limit: int
    ) -> list[J]:
        """The newest jobs; `page` asks for one page and says whether there are more."""
        listed: list[J] = []
        while len(listed) < limit:
            params: dict[str, Any] = {"limit": min(limit - len(listed), 100)}
            if status:
                params["status"] = status
            if listed:
                params["after"] = listed[-1].id
            data, has_more = page(params)
            listed += data
            if not has_more:
                break
        return listed

    def post(self, job_id: str, verb: str) -> J:
        """`cancel` or `resume` a job."""
        return self.connection.post(self.kind, self.path(job_id, f"/{verb}"))

    def failures(self, job_id: str) -> Iterator[Failure]:
        """What did not make it, and why."""
        with self.connection.stream(self.path(job_id, "/errors")) as answer:
            rest = b""
            for block in answer.iter_bytes():
                # At line ends alone: text has other characters that end a line, and JSON may hold them.
                *lines, rest = (rest + block).split(b"\n")
                yield from map(Failure.model_validate_json, lines)
            if rest:
                yield Failure.model_validate_json(rest)

    def follow(self, job_id: str) -> Iterator[Event | P]:
        """Events until the job has ended, and progress between them. Reconnects from the last event seen.

        Raises ServiceError, and ServiceUnreachableError after `patience_seconds` without an answer.
        """
        last_id = ""
        pause, lost_at = FIRST_PAUSE, None
        while True:
            try:
                for number, event in self._stream(job_id, last_id):
                    last_id, lost_at, pause = number or last_id, None, FIRST_PAUSE
                    yield event
                    # The log of one that was resumed holds an earlier end.
                    is_end = isinstance(event, Event) and event.type == "status" and event.data["status"] in FINAL
                    if is_end and self._has_ended(job_id):
                        return
                if self._has_ended(job_id):
                    return
            except ServiceUnreachableError as error:
                now = time.monotonic()
                lost_at = lost_at if lost_at is not None else now
                if now - lost_at > self.patience_seconds:
                    raise ServiceUnreachableError(
                        f"{self.connection.server} has not answered for {self.patience_seconds:g} s ({error}); the "
                        f"{self.noun} goes on when the service does: `logitcask jobs watch {job_id}`"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _has_ended(self, job_id: str) -> bool:
        return self.get(job_id).status in FINAL

    def _stream(self, job_id: str, last_id: str) -> Iterator[tuple[str, Event | P]]:
        for number, kind, text in self.connection.events(self.path(job_id, "/events"), last_id):
            yield number, (self.progress if kind == "progress" else Event).model_validate_json(text)
