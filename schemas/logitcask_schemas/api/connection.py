"""The client's connection: what goes wrong on the way becomes words, what comes back becomes objects."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from logitcask_schemas.api.server_url import ServerUrlError, is_local, service_url
from logitcask_schemas.errors import LogitcaskError, MissingExtraError

try:
    import httpx2
except ModuleNotFoundError as error:
    raise MissingExtraError("logitcask.ServiceClient", "service", "httpx2") from error

T = TypeVar("T", bound=BaseModel)
TIMEOUT_SECONDS: Final = 60.0
"""The service sends a comment every 15 s on streams; four missed ones mean a dead connection."""
_UPLOAD_TIMEOUT: Final = httpx2.Timeout(TIMEOUT_SECONDS, read=1800.0)
"""The answer comes when the last byte is on the disk, which may have gigabytes to write by then."""
_NOT_TLS: Final = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HTTP_REQUEST|UNKNOWN_PROTOCOL")
"""What OpenSSL's versions say where the answer is no TLS, but plain text."""


class ServiceError(LogitcaskError, RuntimeError):
    """The service refused a request; the message is its own. `status` is 0 where the client refused it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ServiceUnreachableError(LogitcaskError, ConnectionError):
    """Nothing answers where the service should be."""


class Connection:
    """Requests to one service. Not thread-safe.

    Every request raises ServiceError where the service refuses it, or what answers is none, and
    ServiceUnreachableError where nothing answers.

    Args:
        server: Where it is, as a person would write it; see `service_url`.
        key: Bearer key, where the service has keys.
        transport: For tests.
    """

    def __init__(self, server: str, key: str | None, transport: httpx2.BaseTransport | None) -> None:
        self.server = service_url(server)
        try:
            self._http = httpx2.Client(
                base_url=self.server,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=TIMEOUT_SECONDS,
                transport=transport,
                # HTTP_PROXY is for the world outside; no proxy reaches this machine's own loopback.
                trust_env=not is_local(self.server),
            )
        except httpx2.InvalidURL as error:
            raise ServerUrlError(f"{server!r} is no URL ({error}); expected http://HOST:PORT") from error

    def close(self) -> None:
        """Close what is open."""
        self._http.close()

    def get(self, kind: type[T], path: str, params: Mapping[str, Any] | None = None) -> T:
        """The object at a path."""
        return self._object(kind, lambda: self._http.get(path, params=params))

    def post(
        self,
        kind: type[T],
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> T:
        """The object that answers a JSON document."""
        if body is None:
            return self._object(kind, lambda: self._http.post(path))
        # Not `json=`, which raises on numbers and texts that the service refuses in words.
        content, headers = json.dumps(body), {**(headers or {}), "Content-Type": "application/json"}
        return self._object(kind, lambda: self._http.post(path, content=content, headers=headers, params=params))

    def post_for(self, media_type: str, path: str, body: Mapping[str, Any], *, seconds: float) -> bytes:
        """What answers a JSON document in this media type, which takes the service up to so many seconds."""
        headers = {"Content-Type": "application/json", "Accept": media_type}
        timeout = httpx2.Timeout(TIMEOUT_SECONDS, read=seconds + TIMEOUT_SECONDS)
        with self._reached():
            answer = self._http.post(path, content=json.dumps(body), headers=headers, timeout=timeout)
        self._require_success(answer)
        if answer.headers.get("content-type") != media_type:
            raise self._stranger(answer)
        return answer.content

    def send_lines(
        self,
        kind: type[T],
        path: str,
        lines: bytes | Iterator[bytes],
        *,
        params: Mapping[str, Any],
        bytes_total: int | None = None,
    ) -> T:
        """The object that answers JSON lines; of a stream, so many bytes are announced."""
        headers = {"Content-Type": "application/jsonl"}
        if bytes_total is not None:
            headers["Content-Length"] = str(bytes_total)
        return self._object(
            kind, lambda: self._http.post(path, content=lines, headers=headers, params=params, timeout=_UPLOAD_TIMEOUT)
        )

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx2.Response]:
        """An answer that is read as it comes."""
        with self._reached(), self._http.stream("GET", path, headers=headers) as answer:
            self._require_success(answer)
            yield answer

    def events(self, path: str, last_id: str) -> Iterator[tuple[str, str, str]]:
        """Server-sent events after the one with this id (empty: all), each as its id, type and data."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        with self.stream(path, headers) as answer:
            if answer.status_code == httpx2.codes.NO_CONTENT:
                return
            for event in httpx2.EventSource(answer):
                if event.data:
                    yield event.id, event.event, event.data

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turns a transport's error into one that says where the service was looked for."""
        try:
            yield
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            if self.server.startswith("https://") and _NOT_TLS.search(reason):
                plain = self.server.replace("https://", "http://", 1)
                raise ServiceUnreachableError(
                    f"what answers at {self.server} does not speak https ({reason}); a service without a proxy speaks "
                    f"http: name {plain} with --server or LOGITCASK_SERVER"
                ) from error
            raise ServiceUnreachableError(
                f"no service answers at {self.server} ({reason}); start one with `logitcask serve`, or name another "
                "with --server or LOGITCASK_SERVER"
            ) from error

    def _object(self, kind: type[T], send: Callable[[], httpx2.Response]) -> T:
        with self._reached():
            answer = send()
        self._require_success(answer)
        try:
            body = answer.json()
            if not isinstance(body, dict) or "object" not in body:
                raise TypeError(f"a JSON object of ours has the member `object`, got {str(body)[:60]!r}")
        except (ValueError, TypeError) as error:
            raise self._stranger(answer) from error
        try:
            return kind.model_validate(body)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:3])
            raise ServiceError(
                answer.status_code,
                "another_version",
                f"the service at {self.server} is of another version of logitcask; its answer to "
                f"{answer.request.method} {answer.request.url.path} cannot be read here ({faults}). Use the "
                "version that it runs",
            ) from error

    def _require_success(self, answer: httpx2.Response) -> None:
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
