"""The client's connection, for threads that wait: does what flows ask for."""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from logitcask_schemas.api.exchange import (
    TIMEOUT_SECONDS,
    Answer,
    Flow,
    Item,
    ItemFlow,
    Next,
    Open,
    Pause,
    Reply,
    Request,
    ServiceError,
    ServiceUnreachableError,
    fetch,
    getting,
    lines_request,
    posting,
    posting_for,
    unreachable,
)
from logitcask_schemas.api.server_url import ServerUrlError, is_local, service_url
from logitcask_schemas.errors import MissingExtraError

try:
    import httpx2
except ModuleNotFoundError as error:
    raise MissingExtraError("logitcask.ServiceClient", "service", "httpx2") from error

__all__ = ["Connection", "ServiceError", "ServiceUnreachableError"]
T = TypeVar("T")
O = TypeVar("O", bound=BaseModel)  # noqa: E741 - an object
TRANSPORT_ERRORS: Final = (httpx2.TransportError, httpx2.InvalidURL)


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
        with valid_url(server):
            self._http = httpx2.Client(**client_options(self.server, key), transport=transport)

    def close(self) -> None:
        """Close what is open."""
        self._http.close()

    def run(self, flow: Flow[T]) -> T:
        """The result of a call."""
        try:
            next(self._drive(flow))
        except StopIteration as end:
            result: T = end.value
            return result
        raise AssertionError("a call with one result gives no items")

    def iterate(self, flow: ItemFlow[T]) -> Iterator[T]:
        """The results of a call, as they come."""
        yield from self._drive(flow)

    def _drive(self, flow: Generator[Any, Reply, T]) -> Generator[Any, None, T]:
        """Do what a flow asks for, step by step; gives its items, and returns its result."""
        with ExitStack() as open_answer:
            steps = _Steps(self, open_answer)
            reply: Reply = None
            fault: ServiceUnreachableError | None = None
            while True:
                try:
                    step = flow.send(reply) if fault is None else flow.throw(fault)
                except StopIteration as end:
                    result: T = end.value
                    return result
                reply = fault = None
                if isinstance(step, Item):
                    yield step.value
                    continue
                try:
                    reply = steps.reply_to(step)
                except ServiceUnreachableError as error:
                    fault = error

    def send(self, request: Request) -> Answer:
        """The whole answer to a request. Raises ServiceUnreachableError."""
        with reached(self.server):
            return answer_of(self.server, self._http.send(self._built(request)))

    def open(self, request: Request) -> httpx2.Response:
        """An answer that is read as it comes, and closed by the caller. Raises ServiceUnreachableError."""
        with reached(self.server):
            return self._http.send(self._built(request), stream=True)

    def _built(self, request: Request) -> httpx2.Request:
        return self._http.build_request(**request_options(request), content=request.content)

    # -- the same, for calls that are no more than one request ---------------------------------------------------

    def get(self, kind: type[O], path: str, params: Mapping[str, Any] | None = None) -> O:
        """The object at a path."""
        return self.run(getting(kind, path, params))

    def post(
        self,
        kind: type[O],
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> O:
        """The object that answers a JSON document."""
        return self.run(posting(kind, path, body, headers=headers, params=params))

    def send_lines(
        self,
        kind: type[O],
        path: str,
        lines: bytes | Iterator[bytes],
        *,
        params: Mapping[str, Any],
        bytes_total: int | None = None,
    ) -> O:
        """The object that answers JSON lines; of a stream, so many bytes are announced."""
        return self.run(fetch(kind, lines_request(path, lines, params=params, bytes_total=bytes_total)))

    def post_for(self, media_type: str, path: str, body: Mapping[str, Any], *, seconds: float) -> bytes:
        """What answers a JSON document in this media type, which takes the service up to so many seconds."""
        return self.run(posting_for(media_type, path, body, seconds=seconds))


class _Steps:
    """The steps of one call, of which at most one answer is open at a time."""

    def __init__(self, connection: Connection, open_answer: ExitStack) -> None:
        self._connection = connection
        self._open_answer = open_answer
        self._answer: httpx2.Response | None = None
        self._blocks: Iterator[bytes] | None = None
        self._events: Iterator[httpx2.ServerSentEvent] | None = None

    def reply_to(self, step: Request | Pause | Open | Next) -> Reply:
        """Do a step. Raises ServiceUnreachableError."""
        match step:
            case Pause():
                time.sleep(step.seconds)
                return None
            case Request():
                return self._connection.send(step)
            case Open():
                return self._opened(step.request)
            case Next():
                with reached(self._connection.server):
                    return self._next(as_events=step.as_events)

    def _opened(self, request: Request) -> Answer:
        self._open_answer.close()
        self._blocks = self._events = None
        self._answer = self._connection.open(request)
        self._open_answer.callback(self._answer.close)
        with reached(self._connection.server):
            is_refusal = not self._answer.is_success
            if is_refusal:
                self._answer.read()
        return answer_of(self._connection.server, self._answer, whole=is_refusal)

    def _next(self, *, as_events: bool) -> Reply:
        assert self._answer is not None
        if as_events:
            self._events = self._events or iter(httpx2.EventSource(self._answer))
            event = next(self._events, None)
            return None if event is None else (event.id, event.event, event.data)
        self._blocks = self._blocks or self._answer.iter_bytes()
        return next(self._blocks, None)


@contextmanager
def reached(server: str) -> Iterator[None]:
    """Turns a transport's error into one that says where the service was looked for."""
    try:
        yield
    except TRANSPORT_ERRORS as error:
        raise unreachable(server, error) from error


def client_options(server: str, key: str | None) -> dict[str, Any]:
    """Arguments of the library's clients, whether they wait or not."""
    return {
        "base_url": server,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": TIMEOUT_SECONDS,
        # HTTP_PROXY is for the world outside; no proxy reaches this machine's own loopback.
        "trust_env": not is_local(server),
        # Reading the certificates takes 50 ms, as long as a short command.
        "verify": not server.startswith("http:"),
    }


@contextmanager
def valid_url(server: str) -> Iterator[None]:
    """Raises ServerUrlError where the library takes the address for none."""
    try:
        yield
    except httpx2.InvalidURL as error:
        raise ServerUrlError(f"{server!r} is no URL ({error}); expected http://HOST:PORT") from error


def request_options(request: Request) -> dict[str, Any]:
    """A request as the library takes it, its content aside."""
    return {
        "method": request.method,
        "url": request.path,
        "params": request.params or None,
        "headers": request.headers,
        "timeout": httpx2.Timeout(TIMEOUT_SECONDS, read=request.read_seconds),
    }


def answer_of(server: str, response: httpx2.Response, *, whole: bool = True) -> Answer:
    """The library's answer as ours."""
    return Answer(
        server=server,
        method=response.request.method,
        path=response.request.url.path,
        status=response.status_code,
        headers={name.lower(): value for name, value in response.headers.items()},
        content=response.content if whole else b"",
    )
