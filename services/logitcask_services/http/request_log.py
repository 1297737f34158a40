"""Every request has an id, which its answer, its problem document and its log lines carry; who changed what is logged.

An audit line tells the key's name, method, route, ids, status and address. What changes something is logged always: as
many lines as there are changes, which are written to the disk anyway. Refusals, and requests that only compute, are
lines of which one of a kind comes in a while, with the number of those left out.
"""

import logging
import re
import uuid
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitcask_services.http.key_use import READING, key_of

HEADER = "X-Request-Id"
SANE = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
MAX_ID_CHARACTERS = 100
REFUSED_READING = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS})
audit = logging.getLogger("logitcask.audit")
repeated = logging.getLogger("logitcask.audit.repeated")
"""Lines that clients can cause without end."""


class RequestLog:
    """Gives each request its id (the client's `X-Request-Id` where that is a plain word) and logs who did what.

    Args:
        app: What answers.
        computing: Routes that change nothing whatever their method.
    """

    def __init__(self, app: ASGIApp, computing: frozenset[str]) -> None:
        self._app = app
        self._computing = computing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(HEADER, "")
        name = offered if SANE.fullmatch(offered) else uuid.uuid4().hex
        # Never taken back: the task ends with the request, and the server logs an unforeseen error after us.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=name)
        status, location = 500, ""

        async def named(message: Message) -> None:
            nonlocal status, location
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER] = name
                status, location = message["status"], headers.get("location", "")
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            self._log(scope, status, location)

    def _log(self, scope: Scope, status: int, location: str) -> None:
        method, key = scope["method"], key_of(scope)
        if method in READING and status not in REFUSED_READING:
            return
        route = getattr(scope.get("route"), "path", "unmatched")
        ids = {name: str(value)[:MAX_ID_CHARACTERS] for name, value in scope.get("path_params", {}).items()}
        if location and status < HTTPStatus.MULTIPLE_CHOICES:  # elsewhere it is a place to go to
            ids["created"] = location.rpartition("/")[2]
        who = "nobody" if key is None else key.name
        client = scope.get("client")
        members: dict[str, object] = {
            "key": who,
            "method": method,
            "route": route,
            "ids": ids,
            "status": status,
            "problem": scope.get("problem"),
            "client": client[0] if client else None,
        }
        often = status >= HTTPStatus.BAD_REQUEST or route in self._computing
        # The kind of a line is its text before its arguments; key names, routes and numbers are ours, and few.
        text = f"{who}: %s {route} {status}%s" if often else "%s: %s %s%s"
        told = "".join(f" {name}={value}" for name, value in ids.items())
        arguments = (method, told) if often else (who, method, route, told)
        (repeated if often else audit).info(text, *arguments, extra={"audit": members})
