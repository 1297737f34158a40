"""What every kind of job answers with in the same way: its log, as pages or as a stream, and its list of failures."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from logitcask_schemas.api.objects import FINAL, ApiObject, Event, EventList
from logitcask_services.http.problems import Problem, Responses, documented
from logitcask_services.jobs.database.jobs import JobStore
from logitcask_services.jobs.database.tables import EventRow, JobRow
from logitcask_services.service import Service

MEDIA_TYPE = "text/event-stream"
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 1.0
MAX_EVENT_ID = 2**63 - 1

AfterEvent = Annotated[int, Query(ge=0, le=MAX_EVENT_ID, description="Only events after this one.")]
EventLimit = Annotated[int, Query(ge=1, le=1000)]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="Resume after this event.")]
EVENT_RESPONSES: Responses = documented(
    400,
    404,
    others={
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "A page, or a stream"},
        204: {"description": "The job has ended and every event has been seen (streams only)"},
    },
)
ERROR_RESPONSES: Responses = documented(
    404, others={200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}, "description": "JSON lines"}}
)
R = TypeVar("R", bound=JobRow)


class StreamPlaces:
    """How many streams may be open at once, so that they leave connections to others. For one event loop."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._open = 0

    def require_place(self) -> None:
        """Raises Problem 503 where all places are taken."""
        if self._open >= self._places:
            raise Problem(
                503,
                "too_many_streams",
                f"{self._places} event streams are open, as many as this service has connections for; read the events "
                "page by page",
                headers={"Retry-After": "10"},
            )

    async def hold(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The stream, which takes a place from its first byte to its last."""
        self._open += 1
        try:
            async for part in stream:
                yield part
        finally:
            self._open -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKind(Generic[R]):
    """What the log of one kind of job needs to know of it."""

    store: JobStore[R]
    progress: Callable[[R], ApiObject]
    """How far a running one is, between two entries of its log."""


async def events_of(
    request: Request,
    service: Service,
    kind: JobKind[R],
    job_id: str,
    *,
    after: int,
    limit: int,
    last_event_id: str | None,
) -> Response | EventList:
    """A JSON page of the log, or with `Accept: text/event-stream` a stream of it. Raises NotFoundError, Problem."""
    row = await run_in_threadpool(kind.store.get, job_id)
    if MEDIA_TYPE not in request.headers.get("accept", ""):
        events = await run_in_threadpool(service.log.events, row, after=after, limit=limit + 1)
        return EventList(
            data=[_event_of(event, kind.store.noun) for event in events[:limit]], has_more=len(events) > limit
        )
    start = max(after, _event_number(last_event_id))
    if await run_in_threadpool(_nothing_left, service, row, start):
        return Response(status_code=204)
    places: StreamPlaces = request.app.state.streams
    places.require_place()
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    following = places.hold(_follow(service, kind, row, start))
    return StreamingResponse(following, media_type=MEDIA_TYPE, headers=headers)


def errors_of(service: Service, row: JobRow) -> StreamingResponse:
    """All failures of a job, one JSON object per line."""

    def lines() -> Iterator[bytes]:
        for page in service.log.failures(row):
            # In ASCII: readers that split at every line separator of Unicode see one line per object, too.
            yield "".join(json.dumps(failure) + "\n" for failure in page).encode()

    return StreamingResponse(lines(), media_type="application/jsonl")


def _event_of(row: EventRow, noun: str) -> Event:
    """An entry of the log as callers see it."""
    object_name: Any = f"{noun}.event"
    return Event(
        object=object_name,
        id=row.seq,
        created_at=int(row.created_at),
        level=row.level,
        type=row.type,
        message=row.message,
        data=row.data,
    )


def _event_number(last_event_id: str | None) -> int:
    if last_event_id is None or last_event_id == "":
        return 0
    digits = last_event_id.lstrip("0") or "0"
    if not last_event_id.isascii() or not last_event_id.isdecimal() or int(digits[:20]) > MAX_EVENT_ID:
        raise Problem(
            400, "invalid_event_id", "Last-Event-ID must be the id of an event of this stream", param="Last-Event-ID"
        )
    return int(digits)


def _nothing_left(service: Service, row: JobRow, after: int) -> bool:
    """Whether the job has ended and its whole log has been seen."""
    return row.status in FINAL and not service.log.events(row, after=after, limit=1)


async def _follow(service: Service, kind: JobKind[R], row: R, after: int) -> AsyncIterator[bytes]:
    """The stream's bytes, from the event after number `after`."""
    yield b": connected\nretry: 1000\n\n"
    seen = -1
    last_sent = last_progress = time.monotonic()
    progress = b""
    while not service.signals.stopping.is_set():
        now = time.monotonic()
        version = service.signals.version(row.id)
        if version != seen:
            seen = version
            row = await run_in_threadpool(kind.store.get, row.id)
            while events := await run_in_threadpool(service.log.events, row, after=after):
                for event in events:
                    after = event.seq
                    yield _encode(event.type, _event_of(event, kind.store.noun), event.seq)
                last_sent = now
            if row.status in FINAL:
                return
        if now - last_progress >= PROGRESS_SECONDS and row.status == "in_progress":
            last_progress = now
            if (latest := _encode("progress", await run_in_threadpool(kind.progress, row), None)) != progress:
                progress, last_sent = latest, now
                yield latest
        if now - last_sent >= service.settings.keepalive_seconds:
            last_sent = now
            yield b": still here\n\n"
        await asyncio.sleep(POLL_SECONDS)


def _encode(kind: str, content: ApiObject, number: int | None) -> bytes:
    identity = f"id: {number}\n" if number is not None else ""
    return f"{identity}event: {kind}\ndata: {json.dumps(content.model_dump(mode='json'))}\n\n".encode()
