"""What each key has used of its limits, and refusals beyond them. In memory: a restart begins to count anew."""

import math
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitcask_services.http.problems import Problem
from logitcask_services.keys import ApiKey

DAY_SECONDS = 24 * 3600
READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(slots=True)
class Use:
    """What one key has used."""

    requests: float
    """That it may still send now; comes back evenly."""
    at: float
    """When that was so; seconds of the monotonic clock."""
    day: int = 0
    """Days since 1970, UTC, that the bytes are of."""
    received: int = 0


class KeyUse:
    """Counts for all keys, by name, so that a key whose limits change in the file keeps its count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[str, Use] = {}

    def admit(self, key: ApiKey, request: Request) -> None:
        """Count a request. Raises Problem: 403 (a key for reading), 413 or 429 (beyond its limits)."""
        self._count_request(key)
        if request.method in READING:
            return
        if key.scope == "read":
            raise Problem(
                403, "read_only_key", f"the key {key.name!r} is for reading; {request.method} needs one of scope `full`"
            )
        length = request.headers.get("content-length", "0")
        self.require_bytes(key, int(length[:20]) if length.isdecimal() else 0, 0)

    def _count_request(self, key: ApiKey) -> None:
        limit = key.limits.requests_per_minute
        if limit is None:
            return
        now, per_second = time.monotonic(), limit / 60
        with self._lock:
            use = self._uses.setdefault(key.name, Use(limit, now))
            use.requests, use.at = min(use.requests + (now - use.at) * per_second, limit), now
            if use.requests < 1:
                raise _later(
                    "too_many_requests",
                    f"the key {key.name!r} may send {limit} requests a minute, and has",
                    (1 - use.requests) / per_second,
                )
            use.requests -= 1

    def require_bytes(self, key: ApiKey, coming: int, received: int) -> None:
        """Refuse a body of which `received` bytes are counted and `coming` are not. Raises Problem 413, 429."""
        limits = key.limits
        for limit, whose in ((limits.body_bytes, "one request"), (limits.upload_bytes_per_day, "a day")):
            if limit is not None and coming + received > limit:
                raise Problem(
                    413, "body_too_large", f"the body is larger than the {limit} bytes of {whose} of key {key.name!r}"
                )
        if limits.upload_bytes_per_day is not None and self._bytes_today(key) + coming > limits.upload_bytes_per_day:
            raise _later(
                "too_many_bytes",
                f"the key {key.name!r} may send {limits.upload_bytes_per_day} bytes from midnight to midnight (UTC)",
                DAY_SECONDS - datetime.now(UTC).timestamp() % DAY_SECONDS,
            )

    def count_bytes(self, key: ApiKey, received: int) -> None:
        """Bytes of a body that came."""
        if key.limits.upload_bytes_per_day is None:
            return
        self._bytes_today(key)
        with self._lock:
            self._uses[key.name].received += received

    def _bytes_today(self, key: ApiKey) -> int:
        today = int(datetime.now(UTC).timestamp() // DAY_SECONDS)
        with self._lock:
            use = self._uses.setdefault(key.name, Use(key.limits.requests_per_minute or 0, time.monotonic()))
            if use.day != today:
                use.day, use.received = today, 0
            return use.received


class BodyMeter:
    """Counts the bytes of bodies against the key of the request, as they are read."""

    def __init__(self, app: ASGIApp, use: KeyUse) -> None:
        self._app = app
        self._use = use

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = uncounted = 0

        async def metered() -> Message:
            nonlocal counted, uncounted
            message = await receive()
            uncounted += len(message.get("body", b""))
            if (key := key_of(scope)) is not None and uncounted:
                self._use.require_bytes(key, uncounted, counted)
                self._use.count_bytes(key, uncounted)
                counted, uncounted = counted + uncounted, 0
            return message

        try:
            await self._app(scope, metered, send)
        finally:  # what is read before anybody asks whose it is, as small JSON is, or was one part too many
            if (key := key_of(scope)) is not None and uncounted:
                self._use.count_bytes(key, uncounted)


def key_of(scope: Scope) -> ApiKey | None:
    """The key of a request, once it has been looked at."""
    key = scope.get("state", {}).get("key")
    return key if isinstance(key, ApiKey) else None


def _later(code: str, detail: str, seconds: float) -> Problem:
    wait = max(1, math.ceil(seconds))
    return Problem(429, code, f"{detail}; try again in {wait} s", headers={"Retry-After": str(wait)})
