"""What is done to every request on its way in: bounds on its head, and on bodies that are read whole; HEAD."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitcask_services.http.problems import Problem, ProblemResponse

MAX_JSON_BYTES = 1 << 20
MAX_HEAD_BYTES = 1 << 16
MAX_HEADERS = 128


class JsonBodyLimit:
    """Answers 413 to bodies over MAX_JSON_BYTES, declared or not, except on streamed paths."""

    def __init__(self, app: ASGIApp, streamed: frozenset[str]) -> None:
        self._app = app
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_JSON_BYTES:
                # Raised inside the route's reading of the body, from where the handlers take it.
                raise HTTPException(413, f"the request body is larger than {MAX_JSON_BYTES} bytes")
            return message

        bounded = scope["type"] == "http" and scope["path"] not in self._streamed
        await self._app(scope, counted if bounded else receive, send)


class HeadLimit:
    """Answers 431 to requests with too many headers, or too many bytes in them and the URL."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and _head_is_too_large(scope):
            await ProblemResponse(head_too_large(), scope["path"][:100])(scope, receive, send)
            return
        await self._app(scope, receive, send)


def head_too_large() -> Problem:
    """431."""
    limits = f"{MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"
    return Problem(431, "head_too_large", f"the head of the request has more than {limits}")


def _head_is_too_large(scope: Scope) -> bool:
    headers = scope["headers"]
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    return len(headers) > MAX_HEADERS or size + sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES


class HeadRequests:
    """Answers HEAD as GET without the body, on every path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def head_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                # Complete at once: what streams for as long as an extraction runs hears that nobody listens.
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        as_get = {**scope, "method": "GET"}
        await self._app(as_get, receive, head_only)
        scope["route"] = as_get.get("route")
