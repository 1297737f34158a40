"""The viewer by itself, on 127.0.0.1: `logitcask view`."""

import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.http.pages.viewer.rendering import PageHeaders, Pages
from logitcask_services.http.pages.viewer.routes import Viewer, file_route
from logitcask_services.http.pages.viewer.runs import RunFolder
from logitcask_services.http.pages.viewer.scores import TokenScores
from logitcask_services.http.pages.viewer.shelf import Shelf

HOST = "127.0.0.1"
NAMES = [HOST, "localhost"]
"""Hosts that a browser may ask for: a page elsewhere cannot make its own name lead here."""


class ViewError(LogitcaskError, OSError):
    """The viewer cannot listen."""


def create_viewer(shelf: Shelf, runs: RunFolder | None = None, scores: TokenScores | None = None) -> Starlette:
    """The application: every answer but errors of the path is a page, JSON or a file; nothing changes anything."""
    sections = [("/ui/casks", "Casks")] + ([] if runs is None else [("/ui/runs", "Runs")])
    headers = [Middleware(PageHeaders)]
    viewer = Viewer(Pages(sections), shelf, runs, scores)

    async def first_page(request: Request) -> Response:
        return RedirectResponse(sections[0][0] if shelf.casks() else sections[-1][0])

    return Starlette(
        routes=[Route("/", first_page), *viewer.routes(headers), file_route(headers)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=NAMES)],
    )


def listen(port: int) -> socket.socket:
    """A socket on the loopback address, 0 for any free port. Raises ViewError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise ViewError(f"cannot listen on {HOST} port {port}: {error.strerror or error}; try --port 0") from error
    return listener


def run_viewer(application: Starlette, listener: socket.socket, announce: Callable[[str], None]) -> None:
    """Serve until a signal ends it."""
    announce(f"http://{HOST}:{listener.getsockname()[1]}")
    config = uvicorn.Config(application, log_config=None, access_log=False, ws="none", lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])
