"""What each key has used of its limits, and refusals beyond them. In memory: a restart begins to count anew."""

import math
import threading
import time
from dataclasses import dataclass

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

    def require_bytes(self, key: ApiKey, coming: int, received: int, *, count: bool = False) -> None:
        """Refuse a body with `received` bytes counted and `coming` not, or, where `count` says so, count them.

        Raises Problem 413, 429.
        """
        limits, a_day = key.limits, key.limits.upload_bytes_per_day
        for limit, whose in ((limits.body_bytes, "one request"), (a_day, "a day")):
            if limit is not None and coming + received > limit:
                raise Problem(
                    413, "body_too_large", f"the body is larger than the {limit} bytes of {whose} of key {key.name!r}"
                )
        if a_day is None:
            return
        with self._lock:
            use = self._use_today(key)
            if use.received + coming > a_day:
                raise _later(
                    "too_many_bytes",
                    f"the key {key.name!r} may send {a_day} bytes from midnight to midnight (UTC)",
                    DAY_SECONDS - time.time() % DAY_SECONDS,
                )
            use.received += coming if count else 0

    def count_bytes(self, key: ApiKey, received: int) -> None:
        """Bytes of a body that came, whatever the limits."""
        if key.limits.upload_bytes_per_day is not None:
            with self._lock:
                self._use_today(key).received += received

    def _use_today(self, key: ApiKey) -> Use:
        today = int(time.time() // DAY_SECONDS)
        use = self._uses.setdefault(key.name, Use(key.limits.requests_per_minute or 0, time.monotonic()))
        if use.day != today:
            use.day, use.received = today, 0
        return use


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
                self._use.require_bytes(key, uncounted, counted, count=True)
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
