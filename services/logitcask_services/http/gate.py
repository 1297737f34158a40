"""Taking connections: never more than there is room for, and those that keep the service waiting are let go.

The event loop's own server accepts whatever comes until no descriptor is left, not even for the jobs. Here the next
connection is accepted when there is a place for it; until then it waits in the kernel. A place is made by letting go of
the connection that has been silent for longest, if any is silent.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from uvicorn.server import ServerState

from logitcask_services.http.connections import ConnectionLimits, WatchedConnection

logger = logging.getLogger(__name__)
NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE_SECONDS = 0.1


class Gate:
    """Accepts connections from a listening socket.

    Args:
        listener: Bound and listening; closed by `close`.
        limits: How many connections, and how patient.
        state: Where uvicorn's protocols enter themselves.
    """

    def __init__(self, listener: socket.socket, limits: ConnectionLimits, state: ServerState) -> None:
        self._listener = listener
        self._limits = limits
        self._state = state
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
        return bool(silent)

    def _connections(self) -> list[WatchedConnection]:
        return [connection for connection in self._state.connections if isinstance(connection, WatchedConnection)]
