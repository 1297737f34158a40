"""The process: settings in, exit code out. Everything that can be wrong is found before the teacher is loaded."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from logitcask_services.http import connections as gate
from logitcask_services.http import logs, problems
from logitcask_services.http.access import MAX_HEAD_BYTES, require_safe_host
from logitcask_services.http.app import create_app
from logitcask_services.http.connections import ConnectionLimits, Gate, connection_class, raise_descriptor_limit
from logitcask_services.http.metrics import ServiceMetrics
from logitcask_services.http.request_log import repeated
from logitcask_services.jobs.loaded_teacher import LoadHinted, Role, Teacher
from logitcask_services.jobs.roster import Roster
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings, SettingsError

logger = logging.getLogger(__name__)
GRACE_SECONDS = 3
"""For requests that are under way when the service stops; with what follows, it ends in less than 10 s."""
BACKLOG = 2048
TICKS_PER_SWEEP = 10


class Server(uvicorn.Server):
    """uvicorn behind a gate of ours. Tells event streams to end before it waits for them.

    Args:
        service: What it serves; started and stopped with it.
        listener: Bound and listening; closed at the end.
        limits: What clients may hold.
    """

    def __init__(self, service: Service, listener: socket.socket, limits: ConnectionLimits) -> None:
        app = create_app(service, streams=max(1, limits.connections // 2))
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(),
                # Not uvloop: it saves a tenth of a millisecond, and raises when a client that has left is written to.
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                timeout_keep_alive=round(limits.request_seconds) + 1,  # our own comes first, for all that is silent
                timeout_graceful_shutdown=GRACE_SECONDS,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )
        self._service = service
        metrics = app.state.metrics
        assert isinstance(metrics, ServiceMetrics)
        metrics.connections.set_function(lambda: len(self.server_state.connections))
        self._gate = Gate(listener, limits, self.server_state, lambda reason: metrics.let_go.labels(reason).inc())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal asks for an orderly end, which is a success; a second one does not wait."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the service, then open the gate."""
        await super().startup(sockets=[])
        self._gate.open(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
        )

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % TICKS_PER_SWEEP == 0:
            self._gate.tend()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking work, then connections, then the service."""
        self._service.signals.stop()
        await self._gate.close()
        dismissing = asyncio.create_task(self._gate.dismiss(GRACE_SECONDS - 1))
        await super().shutdown(sockets)
        dismissing.cancel()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises SettingsError where the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} on {host} is in use by another process; stop that one, or choose another with --port"
            ) from error
        raise SettingsError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    listener.set_inheritable(False)
    return listener


def serve(
    settings: ServiceSettings,
    load: Callable[[Role], Teacher] | Roster,
    *,
    announce: Callable[[str], None],
    complain: Callable[[str], None] | None = None,
    load_hinted: LoadHinted | None = None,
) -> int:
    """Run until a signal or until the service cannot go on; the exit code.

    Args:
        settings: What it runs with.
        load: Loads the teacher for a role, or the teachers there are.
        announce: Hears the address.
        complain: Hears why it could not go on; None: `announce` does.
        load_hinted: Loads a teacher that gives hints.

    Raises SettingsError (unsafe host, port in use, bad key file) and DatabaseError before the teacher is loaded.
    """
    require_safe_host(settings.host, settings.api_keys())
    raise_descriptor_limit()
    listener = bind(settings.host, settings.port)
    try:
        service = Service(settings, load, load_hinted)
    except BaseException:
        listener.close()
        raise
    server = Server(service, listener, ConnectionLimits.of_process())
    service.on_crash = lambda: setattr(server, "should_exit", True)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    announce(f"http://{host}:{listener.getsockname()[1]}")
    server.run()
    if service.crash is not None:
        (complain or announce)(f"the service ended: {service.crash}")
        return service.exit_code
    return 0


def configure_logging(log_format: logs.LogFormat = "text") -> None:
    """Log lines on stderr."""
    # Where clients can cause lines.
    logs.configure_logging(("uvicorn.error", gate.__name__, problems.__name__, repeated.name), log_format)
