"""The process: settings in, exit code out. Everything that can be wrong is found before the teacher is loaded."""

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from logitcask_services.http.access import require_safe_host
from logitcask_services.http.app import create_app
from logitcask_services.jobs.teacher import Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings, SettingsError

logger = logging.getLogger(__name__)
GRACE_SECONDS = 10
BACKLOG = 2048


class _Server(uvicorn.Server):
    """Tells event streams to end before it waits for them."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal asks for an orderly end, which is a success; a second one does not wait."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking work, then connections, then the service."""
        self._service.signals.stop()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises SettingsError where the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
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


def serve(settings: ServiceSettings, load: Callable[[], Teacher], *, announce: Callable[[str], None]) -> int:
    """Run until a signal or until the service cannot go on; the exit code.

    Raises SettingsError (unsafe host, port in use, bad key file) and DatabaseError before the teacher is loaded.
    """
    require_safe_host(settings.host, settings.api_keys())
    listener = bind(settings.host, settings.port)
    try:
        service = Service(settings, load)
    except BaseException:
        listener.close()
        raise
    config = uvicorn.Config(
        create_app(service), log_config=None, lifespan="on", timeout_graceful_shutdown=GRACE_SECONDS, access_log=False
    )
    server = _Server(config, service)
    service.on_crash = lambda: setattr(server, "should_exit", True)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    announce(f"http://{host}:{listener.getsockname()[1]}")
    asyncio.run(server.serve(sockets=[listener]))
    if service.crash is not None:
        announce(f"the service ended: {service.crash}")
        return 1
    return 0


def configure_logging() -> None:
    """Log lines on stderr."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
