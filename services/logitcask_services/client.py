"""A client of the service: uploads a file as a stream, starts an extraction, follows it across broken connections."""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from logitcask_schemas.errors import LogitcaskError

FINAL = frozenset({"completed", "failed", "cancelled"})
BLOCK_BYTES = 1 << 20
TRIES = 3
LONGEST_PAUSE = 5.0


class ServiceError(LogitcaskError, RuntimeError):
    """The service refused a request; the message is its own."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ServiceUnreachableError(LogitcaskError, ConnectionError):
    """Nothing answers where the service should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowedEvent:
    """One event of an extraction: an entry of its log, or a `progress` report between entries."""

    type: str
    data: dict[str, Any]


class ServiceClient:
    """Talks to one service. Not thread-safe.

    Args:
        server: Base URL.
        key: Bearer key, where the service has keys.
        patience_seconds: How long `follow` waits for a service that does not answer.
        transport: For tests.
    """

    def __init__(
        self,
        server: str,
        key: str | None = None,
        *,
        patience_seconds: float = 600.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.server = server.rstrip("/")
        self._patience = patience_seconds
        # The service sends a comment every 15 s on streams; four missed ones mean a dead connection.
        self._http = httpx2.Client(base_url=self.server, headers=headers, timeout=60.0, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def upload(
        self, path: Path, *, name: str | None = None, sent: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        """Stream a file up; `sent` hears of every block's bytes. The service's digest is compared with our own."""
        digest = hashlib.sha256()

        def blocks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    if sent is not None:
                        sent(len(block))
                    yield block

        try:
            size = path.stat().st_size
        except OSError as error:
            raise ServiceError(0, "unreadable_file", f"{path} cannot be read: {error.strerror}") from error
        headers = {"Content-Type": "application/jsonl", "Content-Length": str(size)}
        params = {"name": name} if name else {}
        corpus = self._json(lambda: self._http.post("/v1/corpora", content=blocks(), headers=headers, params=params))
        if corpus["sha256"] != digest.hexdigest():
            raise ServiceError(0, "upload_damaged", f"{path} arrived damaged (the digests differ); submit it again")
        return corpus

    def submit(self, request: dict[str, Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Start an extraction; a connection lost meanwhile does not start it twice."""
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        for attempt in range(TRIES):
            try:
                return self._json(lambda: self._http.post("/v1/extractions", json=request, headers=headers))
            except ServiceUnreachableError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(1.0)
        raise AssertionError("unreachable")

    def extraction(self, extraction_id: str) -> dict[str, Any]:
        """One extraction."""
        return self._json(lambda: self._http.get(f"/v1/extractions/{extraction_id}"))

    def extractions(self, *, status: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """The newest extractions."""
        found: list[dict[str, Any]] = []
        while len(found) < limit:
            params: dict[str, Any] = {"limit": min(limit - len(found), 100)}
            if status:
                params["status"] = status
            if found:
                params["after"] = found[-1]["id"]
            page = self._page("/v1/extractions", params)
            found += page["data"]
            if not page["has_more"]:
                break
        return found

    def _page(self, path: str, params: dict[str, Any]) -> dict[str, Any]:
        return self._json(lambda: self._http.get(path, params=params))

    def cancel(self, extraction_id: str) -> dict[str, Any]:
        """Ask an extraction to end."""
        return self._json(lambda: self._http.post(f"/v1/extractions/{extraction_id}/cancel"))

    def failures(self, extraction_id: str) -> Iterator[dict[str, Any]]:
        """Bad lines and failed documents."""
        with self._reached(), self._http.stream("GET", f"/v1/extractions/{extraction_id}/errors") as answer:
            _raise_for(answer)
            for line in answer.iter_lines():
                yield json.loads(line)

    def follow(self, extraction_id: str) -> Iterator[FollowedEvent]:
        """Events until the extraction has ended. Reconnects from the last event seen.

        Raises ServiceError, and ServiceUnreachableError after `patience_seconds` without an answer.
        """
        last_id = ""
        pause, lost_at = 0.2, None
        while True:
            try:
                for number, event in self._stream(extraction_id, last_id):
                    last_id, lost_at, pause = number or last_id, None, 0.2
                    yield event
                    if event.type == "status" and event.data["data"]["status"] in FINAL:
                        return
                if self.extraction(extraction_id)["status"] in FINAL:
                    return
            except (httpx2.TransportError, ServiceUnreachableError) as error:
                now = time.monotonic()
                lost_at = lost_at if lost_at is not None else now
                if now - lost_at > self._patience:
                    raise ServiceUnreachableError(
                        f"{self.server} has not answered for {self._patience:g} s ({error}); the extraction goes on "
                        f"when the service does: `logitcask jobs watch {extraction_id}`"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _stream(self, extraction_id: str, last_id: str) -> Iterator[tuple[str, FollowedEvent]]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        with self._http.stream("GET", f"/v1/extractions/{extraction_id}/events", headers=headers) as answer:
            _raise_for(answer)
            if answer.status_code == httpx2.codes.NO_CONTENT:
                return
            for event in httpx2.EventSource(answer):
                if event.data:
                    yield event.id, FollowedEvent(type=event.event, data=json.loads(event.data))

    def _json(self, send: Callable[[], httpx2.Response]) -> dict[str, Any]:
        with self._reached():
            answer = send()
        _raise_for(answer)
        body: dict[str, Any] = answer.json()
        return body

    def _reached(self) -> "_Reached":
        return _Reached(self.server)


class _Reached:
    """Turns a transport error into one that says where the service was looked for."""

    def __init__(self, server: str) -> None:
        self._server = server

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, httpx2.TransportError | httpx2.InvalidURL):
            raise ServiceUnreachableError(
                f"no service answers at {self._server} ({error}); start one with `logitcask serve`, or name another "
                "with --server or LOGITCASK_SERVER"
            ) from error


def _raise_for(answer: httpx2.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    try:
        body = answer.json()
        fault = body["error"]
        raise ServiceError(answer.status_code, str(fault["code"]), str(fault["message"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ServiceError(
            answer.status_code, "not_our_service", f"the answer {answer.status_code} is not a logitcask service's"
        ) from error
