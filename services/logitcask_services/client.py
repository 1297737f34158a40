"""A client of the service: uploads a file as a stream, starts an extraction, follows it across broken connections."""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx2

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.server_url import ServerUrlError, is_local, service_url

FINAL = frozenset({"completed", "failed", "cancelled"})
BLOCK_BYTES = 1 << 20
TRIES = 3
PAUSE = 1.0
UPLOAD_TIMEOUT = httpx2.Timeout(60.0, read=1800.0)
"""Seconds. The answer comes when the last byte is on the disk, which may have gigabytes to write by then."""
LONGEST_PAUSE = 5.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_TLS = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HTTP_REQUEST|UNKNOWN_PROTOCOL")
"""What OpenSSL's versions say where the answer is no TLS, but plain text."""


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
        server: Where it is, as a person would write it; see `service_url`.
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
        self.server = service_url(server)
        self._patience = patience_seconds
        try:
            self._http = httpx2.Client(
                base_url=self.server,
                headers=headers,
                # The service sends a comment every 15 s on streams; four missed ones mean a dead connection.
                timeout=60.0,
                transport=transport,
                # HTTP_PROXY is for the world outside; no proxy reaches this machine's own loopback.
                trust_env=not is_local(self.server),
            )
        except httpx2.InvalidURL as error:
            raise ServerUrlError(f"{server!r} is no URL ({error}); expected http://HOST:PORT") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def check(self, plan: dict[str, Any], *, corpus_bytes: int | None = None) -> dict[str, Any]:
        """Whether an extraction could be started: a request without `corpus_id`. Raises ServiceError saying why not."""
        params = {"corpus_bytes": corpus_bytes} if corpus_bytes is not None else {}
        return self._json(lambda: self._post("/v1/extractions/check", plan, params=params))

    def preview(self, lines: bytes, plan: dict[str, Any], *, documents: int) -> dict[str, Any]:
        """What an extraction would make of these JSON lines; a request without `corpus_id`. Nothing is kept."""
        params: dict[str, Any] = {"capture": json.dumps(plan["capture"]), "documents": documents}
        params |= {name: plan[name] for name in ("cask", "max_length", "overflow") if plan.get(name) is not None}
        headers = {"Content-Type": "application/jsonl"}
        return self._json(
            lambda: self._http.post(
                "/v1/previews", content=lines, headers=headers, params=params, timeout=UPLOAD_TIMEOUT
            )
        )

    def corpus_with(self, sha256: str) -> dict[str, Any] | None:
        """The corpus with this content (digest in hex), if the service has it."""
        corpora: list[dict[str, Any]] = self._page("/v1/corpora", {"sha256": sha256})["data"]
        return corpora[0] if corpora else None

    def upload(
        self,
        path: Path,
        *,
        name: str | None = None,
        sha256: str | None = None,
        sent: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Stream a file up. A broken connection is tried again, from the beginning of the file.

        Args:
            path: The file.
            name: A label for people.
            sha256: Digest of the content, so that after a broken connection the service can be asked for it.
            sent: Hears of the bytes sent so far; back to 0 when the file is sent again.

        Returns:
            The corpus.

        Raises:
            ServiceError: The service refused it, the file cannot be read, or the digests differ.
            ServiceUnreachableError: The connection broke TRIES times.
        """
        for attempt in range(TRIES):
            try:
                return self._send(path, name, sent)
            except ServiceUnreachableError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(PAUSE * 2**attempt)
            if sha256 is not None and (corpus := self.corpus_with(sha256)) is not None:
                return corpus  # only the answer was lost
        raise AssertionError("unreachable")

    def _send(self, path: Path, name: str | None, sent: Callable[[int], None] | None) -> dict[str, Any]:
        digest = hashlib.sha256()

        def blocks(file: BinaryIO) -> Iterator[bytes]:
            total = 0
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                if sent is not None:
                    sent(total)
                total += len(block)
                yield block
            if sent is not None:
                sent(total)

        try:
            file = path.open("rb")
            size = path.stat().st_size
        except OSError as error:
            raise ServiceError(0, "unreadable_file", f"{path} cannot be read: {error.strerror}") from error
        headers = {"Content-Type": "application/jsonl", "Content-Length": str(size)}
        params = {"name": name} if name else {}
        with file:
            corpus = self._json(
                lambda: self._http.post(
                    "/v1/corpora", content=blocks(file), headers=headers, params=params, timeout=UPLOAD_TIMEOUT
                )
            )
        if corpus.get("sha256") != digest.hexdigest():
            raise ServiceError(
                0,
                "upload_damaged",
                f"{path} arrived damaged, or changed meanwhile (the digests differ); submit it again",
            )
        return corpus

    def submit(self, request: dict[str, Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Start an extraction; a connection lost meanwhile does not start it twice."""
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        for attempt in range(TRIES):
            try:
                return self._json(lambda: self._post("/v1/extractions", request, headers=headers))
            except ServiceUnreachableError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(PAUSE)
        raise AssertionError("unreachable")

    def extraction(self, extraction_id: str) -> dict[str, Any]:
        """One extraction."""
        return self._json(lambda: self._http.get(_path(extraction_id)))

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

    def resume(self, extraction_id: str) -> dict[str, Any]:
        """Take a failed extraction up again; the extraction object."""
        return self._json(lambda: self._http.post(_path(extraction_id, "/resume")))

    def cancel(self, extraction_id: str) -> dict[str, Any]:
        """Ask an extraction to end."""
        return self._json(lambda: self._http.post(_path(extraction_id, "/cancel")))

    def manifest(self, extraction_id: str) -> dict[str, Any]:
        """The shards that an extraction has put into its cask so far."""
        return self._json(lambda: self._http.get(_path(extraction_id, "/manifest")))

    def failures(self, extraction_id: str) -> Iterator[dict[str, Any]]:
        """Bad lines and failed documents."""
        with self._reached(), self._http.stream("GET", _path(extraction_id, "/errors")) as answer:
            self._raise_for(answer)
            rest = b""
            for block in answer.iter_bytes():
                # At line ends alone: text has other characters that end a line, and JSON may hold them.
                *lines, rest = (rest + block).split(b"\n")
                yield from map(json.loads, lines)
            if rest:
                yield json.loads(rest)

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
        with self._http.stream("GET", _path(extraction_id, "/events"), headers=headers) as answer:
            self._raise_for(answer)
            if answer.status_code == httpx2.codes.NO_CONTENT:
                return
            for event in httpx2.EventSource(answer):
                if event.data:
                    yield event.id, FollowedEvent(type=event.event, data=json.loads(event.data))

    def _post(
        self, path: str, body: dict[str, Any], *, headers: dict[str, str] | None = None, params: Any = None
    ) -> httpx2.Response:
        # Not `json=`, which raises on numbers and texts that the service refuses in words.
        kind = {"Content-Type": "application/json"}
        return self._http.post(path, content=json.dumps(body), headers=(headers or {}) | kind, params=params)

    def _json(self, send: Callable[[], httpx2.Response]) -> dict[str, Any]:
        with self._reached():
            answer = send()
        self._raise_for(answer)
        try:
            body = answer.json()
            if not isinstance(body, dict) or "object" not in body:
                raise TypeError(f"a JSON object of ours has the member `object`, got {str(body)[:60]!r}")
        except (ValueError, TypeError) as error:
            raise self._stranger(answer) from error
        return body

    def _raise_for(self, answer: httpx2.Response) -> None:
        if answer.is_success:
            return
        answer.read()
        try:
            fault = answer.json()["error"]
            raise ServiceError(answer.status_code, str(fault["code"]), str(fault["message"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self._stranger(answer) from error

    def _stranger(self, answer: httpx2.Response) -> ServiceError:
        to = f"; it points to {answer.headers['location']}" if "location" in answer.headers else ""
        return ServiceError(
            answer.status_code,
            "not_our_service",
            f"what answers at {self.server} is no logitcask service (status {answer.status_code} to "
            f"{answer.request.method} {answer.request.url.path}{to}); name another with --server or LOGITCASK_SERVER",
        )

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
            reason = str(error) or type(error).__name__
            if self._server.startswith("https://") and _NOT_TLS.search(reason):
                plain = self._server.replace("https://", "http://", 1)
                raise ServiceUnreachableError(
                    f"what answers at {self._server} does not speak https ({reason}); a service without a proxy speaks "
                    f"http: name {plain} with --server or LOGITCASK_SERVER"
                ) from error
            raise ServiceUnreachableError(
                f"no service answers at {self._server} ({reason}); start one with `logitcask serve`, or name another "
                "with --server or LOGITCASK_SERVER"
            ) from error


def _path(extraction_id: str, rest: str = "") -> str:
    if _ID.fullmatch(extraction_id) is None:  # such as nothing, from a variable of a shell that is not set
        raise ServiceError(
            404, "not_found", f"{extraction_id[:80]!a} is no extraction's id; `logitcask jobs ls` lists those there are"
        )
    return f"/v1/extractions/{extraction_id}{rest}"
