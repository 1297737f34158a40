"""A bound on request bodies that are read whole; the upload of a corpus is streamed and has a bound of its own."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_JSON_BYTES = 1 << 20


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
