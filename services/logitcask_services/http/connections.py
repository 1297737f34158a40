"""One connection: how long it may keep the service waiting, and how much it may send before it asks for something."""

import asyncio
import errno
import json
import logging
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self, cast

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from logitcask_services.http.access import MAX_HEAD_BYTES, head_too_large
from logitcask_services.http.problems import MEDIA_TYPE, Problem

MAX_CONNECTIONS = 1024
FEWEST_CONNECTIONS = 8
RESERVED_DESCRIPTORS = 192
"""Left to the jobs: database connections of 40 request threads, casks, token stores, the engine."""
DESCRIPTORS_PER_CONNECTION = 2
"""The socket, and the file of an upload."""
MAX_DESCRIPTORS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What clients may hold, and for how long. Seconds."""

    connections: int = MAX_CONNECTIONS
    request_seconds: float = 30.0
    """From the opening of the connection, or the end of an answer, until the head of a request is complete."""
    body_seconds: float = 30.0
    """Silence in the middle of a body."""
    answer_seconds: float = 60.0
    """How long a client may take nothing of an answer that is ready for it."""
    room_seconds: float = 0.5
    """Silence, between requests or in a body, after which the connection may be let go for a new one."""

    @classmethod
    def of_process(cls) -> Self:
        """As many connections as the process's descriptors allow beside those that the jobs need."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = (descriptors - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION
        return cls(connections=min(max(spare, FEWEST_CONNECTIONS), MAX_CONNECTIONS))


def raise_descriptor_limit() -> None:
    """Ask for as many descriptors as the system lets this process have; shells give 1,024 by habit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    max_descriptors = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < max_descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max_descriptors, hard))


class WatchedConnection(asyncio.Protocol):
    """What is added to uvicorn's protocols: moments from which silence counts, and short answers to nonsense."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    cycle: Any
    """uvicorn's latest request and its response, None before the first."""
    flow: Any
    _running: Any = None
    """The one that is being answered, where the client has sent further requests behind it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a request."""
        self._waiting_since = self._received_at = self._drained_at = self.loop.time()
        self._unsent = 0
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._received_at = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """The answer is complete; start to wait for the next request."""
        self._waiting_since = self.loop.time()
        super().on_response_complete()  # type: ignore[misc]  # uvicorn's

    def overdue(self, limits: ConnectionLimits) -> bool:
        """Whether the client has kept the service waiting for too long. To be asked every second or so."""
        now = self.loop.time()
        if (unsent := self.transport.get_write_buffer_size()) > 0:
            if unsent != self._unsent:
                self._unsent, self._drained_at = unsent, now
            return now - self._drained_at > limits.answer_seconds
        self._unsent = 0
        if self._between_requests():
            return now - self._waiting_since > limits.request_seconds
        return self._within_body() and now - self._received_at > limits.body_seconds

    def dispensable_since(self, limits: ConnectionLimits) -> float | None:
        """Since when nothing is being done for the client, so that it may be let go for another; None while it is."""
        if self.transport.is_closing() or self.transport.get_write_buffer_size() > 0:
            return None
        if self.loop.time() - self._received_at < limits.room_seconds:
            return None
        return self._received_at if self._between_requests() or self._within_body() else None

    def let_go(self) -> None:
        """End the connection at once; a request that waits for its body ends with ClientDisconnect."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to bytes that are not HTTP, as a problem."""
        self._refuse(Problem(400, "invalid_http", f"{msg} Expected an HTTP/1.1 request"))

    def _refuse(self, problem: Problem) -> None:
        if not self._between_requests():  # the answer would run into that of the request before
            self.transport.abort()
            return
        body = json.dumps(problem.body("")).encode()
        head = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\nContent-Type: {MEDIA_TYPE}\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; whoever answers it hears of it."""
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _request(self) -> Any:
        return self._running if self._running is not None else self.cycle

    def _between_requests(self) -> bool:
        request = self._request()
        return request is None or request.response_complete

    def _within_body(self) -> bool:
        """Whether it is the client's turn: more of the body is due, and we are reading."""
        request = self._request()
        return request is not None and request.more_body and not self.flow.read_paused


class H11Connection(WatchedConnection, H11Protocol):
    """For installations without httptools. h11 bounds heads and trailers itself."""


def connection_class() -> type[asyncio.Protocol]:
    """The faster parser where it is installed."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return H11Connection

    class HttpToolsConnection(WatchedConnection, HttpToolsProtocol):
        """httptools takes heads, trailers and chunk extensions of any length; here bytes that lead to nothing count."""

        _fruitless = 0

        def data_received(self, data: bytes) -> None:
            """Bytes from the client."""
            self._fruitless += len(data)
            super().data_received(data)
            if self._fruitless > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(head_too_large())

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

        def on_headers_complete(self) -> None:
            """A request has begun."""
            self._fruitless = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            """A part of a body."""
            self._fruitless = 0
            super().on_body(body)

    return cast("type[asyncio.Protocol]", HttpToolsConnection)


logger = logging.getLogger(__name__)
NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE_SECONDS = 0.1


class Gate:
    """Accepts connections from a listening socket.

    Args:
        listener: Bound and listening; closed by `close`.
        limits: How many connections, and how patient.
        state: Where uvicorn's protocols enter themselves.
        let_go: Told why whenever a connection is ended: `overdue`, or `room` for another one.
    """

    def __init__(
        self,
        listener: socket.socket,
        limits: ConnectionLimits,
        state: ServerState,
        let_go: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._listener = listener
        self._limits = limits
        self._state = state
        self._let_go = let_go
        self._accepting: asyncio.Task[None] | None = None

    def open(self, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        """Start to accept, in the running loop."""
        self._listener.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(make_protocol))

    def tend(self) -> None:
        """Let go of connections that are overdue; to be called every second or so. Raises what ended the accepting."""
        if self._accepting is not None and self._accepting.done():
            self._accepting.result()
        for connection in self._connections():
            if connection.overdue(self._limits):
                connection.let_go()
                self._let_go("overdue")

    async def close(self) -> None:
        """Accept no more."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        self._listener.close()

    async def dismiss(self, seconds: float) -> None:
        """Let go of those who are silent, and after `seconds` of the others."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            for connection in self._connections():
                if loop.time() > end or connection.dispensable_since(self._limits) is not None:
                    connection.let_go()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _accept(self, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while len(self._state.connections) >= self._limits.connections:
                # An aborted connection leaves the set in the loop's next round.
                await asyncio.sleep(0 if self._make_room() else PAUSE_SECONDS)
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # also of a client that has gone already
                if error.errno in NO_RESOURCES:
                    logger.warning("no connection can be taken: %s", error.strerror)
                    self._make_room()
                    await asyncio.sleep(PAUSE_SECONDS)
                continue
            # Without it, the kernel holds back the second half of every answer until the client has
            # acknowledged the first: 40 ms for each request on a kept connection.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(make_protocol, connection)

    def _make_room(self) -> bool:
        """Let go of the connection that has been silent for longest; whether there was one."""
        silent = [
            (since, number, connection)
            for number, connection in enumerate(self._connections())
            if (since := connection.dispensable_since(self._limits)) is not None
        ]
        if silent:
            min(silent)[2].let_go()
            self._let_go("room")
        return bool(silent)

    def _connections(self) -> list[WatchedConnection]:
        return [connection for connection in self._state.connections if isinstance(connection, WatchedConnection)]
