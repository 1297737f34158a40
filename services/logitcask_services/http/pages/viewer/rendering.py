"""Answers of the page: templates that escape all they are given, headers that let nothing foreign run, and errors."""

import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitcask_schemas.errors import CaskNotFoundError, LogitcaskError
from logitcask_schemas.terminal import installed_version

FOLDER: Final = Path(__file__).resolve().parent.parent
STATIC: Final = FOLDER / "static"
VENDORED: Final = ("htmx.org/htmx.min.js", "uplot/uPlot.iife.min.js", "uplot/uPlot.min.css")
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NOTHING: Final = "\N{EN DASH}"
"""In place of a number that there is not."""
BINARY_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
Work = Callable[[Request], Response]


class PageHeaders:
    """Adds the headers to every answer; what is no file of the page is not kept by caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)


class JsonAnswer(JSONResponse):
    """A model as JSON, in ASCII, so that half characters of hostile names are answered too."""

    def render(self, content: Any) -> bytes:
        """JSON."""
        plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
        return json.dumps(plain, allow_nan=False).encode("ascii")


def bytes_text(size: float) -> str:
    """A size for people."""
    unit = 0
    while size >= 1024 and unit + 1 < len(BINARY_UNITS):
        size, unit = size / 1024, unit + 1
    return f"{size:,.0f} {BINARY_UNITS[unit]}" if unit == 0 else f"{size:,.1f} {BINARY_UNITS[unit]}"


def probability_text(value: float | None) -> str:
    """A probability in percent; a dash for none."""
    if value is None:
        return NOTHING
    return "<0.01 %" if 0 < value < 0.0001 else f"{100 * value:.2f} %"


def figure_text(value: float | None, digits: int = 2) -> str:
    """A number; a dash for none."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def plain_text(text: str) -> str:
    """Text that UTF-8 can hold: half characters are shown as what they are."""
    return text.encode("utf-8", "backslashreplace").decode()


def _segment(text: str) -> str:
    """A name as one part of a URL's path."""
    return quote(text, safe="", errors="surrogatepass")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: plain_text(value) if type(value) is str else value,
    )
    environment.filters |= {
        "bytes": bytes_text,
        "percent": probability_text,
        "figure": figure_text,
        "segment": _segment,
    }
    return environment


class Pages:
    """Renders templates.

    Args:
        sections: What the head of every page links to, as (path, title).
        signed_in: Whether a request carries a session that can be ended.
    """

    def __init__(
        self, sections: list[tuple[str, str]], signed_in: Callable[[Request], bool] = lambda request: False
    ) -> None:
        self._environment = _environment()
        self._sections = sections
        self._signed_in = signed_in

    def show(self, request: Request, template: str, /, *, status: int = 200, **content: Any) -> Response:
        """A page."""
        page = self._environment.get_template(template).render(
            sections=self._sections,
            path=request.url.path,
            version=installed_version(),
            missing_assets=missing_assets(),
            signed_in=self._signed_in(request),
            **content,
        )
        return HTMLResponse(page, status_code=status)

    def page(self, work: Work) -> Callable[[Request], Awaitable[Response]]:
        """A route's function of a page, in a thread; what it raises of ours becomes a page that says so."""

        @functools.wraps(work)
        async def answer(request: Request) -> Response:
            try:
                return await run_in_threadpool(work, request)
            except LogitcaskError as error:
                return self.show(request, "problem.html", status=status_of(error), message=str(error))

        return answer


def data(work: Callable[[Request], BaseModel | Sequence[BaseModel]]) -> Callable[[Request], Awaitable[Response]]:
    """A route's function of the JSON interface, in a thread; errors as problem details."""

    @functools.wraps(work)
    async def answer(request: Request) -> Response:
        try:
            content = await run_in_threadpool(work, request)
        except LogitcaskError as error:
            status = status_of(error)
            problem = {"type": "about:blank", "title": type(error).__name__, "status": status, "detail": str(error)}
            return JsonAnswer(problem, status_code=status, media_type="application/problem+json")
        if isinstance(content, BaseModel):
            return JsonAnswer(content)
        return JsonAnswer({"data": [entry.model_dump(mode="json") for entry in content]})

    return answer


def status_of(error: LogitcaskError) -> int:
    """400: the request is wrong. 404: what it asks for is not there. 503: the disk or the store fails. Else 409."""
    if isinstance(error, QueryError):
        return 400
    if isinstance(error, CaskNotFoundError | LookupError):
        return 404
    return 503 if isinstance(error, OSError) else 409


class QueryError(LogitcaskError, ValueError):
    """A parameter of the URL is no number, or out of its range."""


def whole_number(request: Request, name: str, default: int, *, low: int = 0, high: int = 2**53) -> int:
    """A parameter of the URL. Raises QueryError."""
    text = request.query_params.get(name, "")
    if text == "":
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and low <= int(text) <= high):
        raise QueryError(f"{name} should be a whole number from {low} to {high}, got {text[:40]!r}")
    return int(text)


def missing_assets() -> bool:
    """Whether what the page loads of others was not fetched."""
    return not all((STATIC / "vendor" / name).is_file() for name in VENDORED)
