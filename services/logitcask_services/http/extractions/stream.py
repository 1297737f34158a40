"""An extraction's log as server-sent events: everything after Last-Event-ID, then each event as it happens.

Entries of the log carry their number as `id`. Between them come `progress` events without an id (nothing to resume
from) at most once a second, and comments when nothing happens. The stream ends after the last event of an extraction
that has ended; asking again then gives 204, which tells an EventSource to stop.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from logitcask_services.http.extractions.wire import Event
from logitcask_services.http.extractions.work import present
from logitcask_services.http.problems import Problem
from logitcask_services.jobs.states import FINAL
from logitcask_services.jobs.tables import ExtractionRow
from logitcask_services.service import Service

MEDIA_TYPE = "text/event-stream"
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 1.0


class StreamPlaces:
    """How many streams may be open at once, so that they leave connections to others. For one event loop."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0

    def require_room(self) -> None:
        """Raises Problem 503 where all places are taken."""
        if self._taken >= self._places:
            raise Problem(
                503,
                "too_many_streams",
                f"{self._places} event streams are open, as many as this service has connections for; read the events "
                "page by page",
                headers={"Retry-After": "10"},
            )

    async def hold(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The stream, which takes a place from its first byte to its last."""
        self._taken += 1
        try:
            async for part in stream:
                yield part
        finally:
            self._taken -= 1


def nothing_left(service: Service, row: ExtractionRow, after: int) -> bool:
    """Whether the extraction has ended and its whole log has been seen."""
    return row.status in FINAL and not service.log.events(row, after=after, limit=1)


async def follow(service: Service, row: ExtractionRow, after: int) -> AsyncIterator[bytes]:
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
            row = await run_in_threadpool(service.extractions.get, row.id)
            while events := await run_in_threadpool(service.log.events, row, after=after):
                for event in events:
                    after = event.seq
                    yield _encode(event.type, json.dumps(Event.of(event).model_dump()), event.seq)
                last_sent = now
            if row.status in FINAL:
                return
        if now - last_progress >= PROGRESS_SECONDS and row.status == "in_progress":
            last_progress = now
            if (latest := _progress(service, row)) != progress:
                progress, last_sent = latest, now
                yield latest
        if now - last_sent >= service.settings.keepalive_seconds:
            last_sent = now
            yield b": still here\n\n"
        await asyncio.sleep(POLL_SECONDS)


def _progress(service: Service, row: ExtractionRow) -> bytes:
    whole = present(service, row)
    data = {
        "status": whole.status,
        "usage": whole.usage.model_dump(),
        "request_counts": whole.request_counts.model_dump(),
        "throughput_tps": whole.throughput_tps,
        "eta_seconds": whole.eta_seconds,
    }
    return _encode("progress", json.dumps(data), None)


def _encode(kind: str, data: str, number: int | None) -> bytes:
    identity = f"id: {number}\n" if number is not None else ""
    return f"{identity}event: {kind}\ndata: {data}\n\n".encode()
