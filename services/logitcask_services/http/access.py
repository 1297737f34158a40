"""Who may call: Bearer keys; without a key, loopback only, and no web page behind a false name. How large heads are."""

import ipaddress
import re
import socket
from collections.abc import Collection, Mapping
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logitcask_services.http.key_ring import KeyRing
from logitcask_services.http.key_use import READING, KeyUse
from logitcask_services.http.problems import Problem, ProblemResponse
from logitcask_services.keys import ApiKey
from logitcask_services.settings import SettingsError

MAX_JSON_BYTES = 1 << 20
MAX_HEAD_BYTES = 1 << 16
MAX_HEADERS = 128


class JsonBodyLimit:
    """Answers 413 to bodies over MAX_JSON_BYTES, declared or not, except on streamed paths; some may be larger."""

    def __init__(self, app: ASGIApp, streamed: frozenset[str], larger: Mapping[str, int]) -> None:
        self._app = app
        self._streamed = streamed
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        received, limit = 0, self._larger.get(scope.get("path", ""), MAX_JSON_BYTES)

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # Raised inside the route's reading of the body, from where the handlers take it.
                raise HTTPException(413, f"the request body is larger than {limit} bytes")
            return message

        bounded = scope["type"] == "http" and not self._is_streamed(scope["path"])
        await self._app(scope, counted if bounded else receive, send)

    def _is_streamed(self, path: str) -> bool:
        return path in self._streamed or _PART_PATH.fullmatch(path) is not None


_PART_PATH = re.compile("/v1/uploads/[^/]+/parts")
"""Of a part of an upload, which is as large as the caller likes."""


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
        for member in ("route", "path_params", "problem"):
            if member in as_get:
                scope[member] = as_get[member]


bearer = HTTPBearer(auto_error=False, description="A key of the server's key file. Not needed without one (loopback).")


def caller(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> ApiKey:
    """The caller's key. Raises Problem 401; 403, 413, 429 where the key does not go so far."""
    ring, use = request.app.state.keys, request.app.state.key_use
    assert isinstance(ring, KeyRing)
    assert isinstance(use, KeyUse)
    key = ring.find(credentials.credentials if credentials else None)
    if key is None:
        what = "is not one of the server's keys" if credentials else "is missing; send `Authorization: Bearer <key>`"
        raise Problem(401, "invalid_api_key", f"the API key {what}", headers={"WWW-Authenticate": "Bearer"})
    request.state.key = key
    use.admit(key, request)
    return key


def caller_name(key: Annotated[ApiKey, Depends(caller)]) -> str:
    """Whose idempotency keys a request's are."""
    return key.name


CallerKey = Annotated[ApiKey, Depends(caller)]
Caller = Annotated[str, Depends(caller_name)]


def is_loopback(host: str) -> bool:
    """Whether every address of a host name or address is this machine's own loopback."""
    try:
        addresses = {str(endpoint[0]) for *_, endpoint in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except socket.gaierror as error:
        raise SettingsError(f"the host {host!r} cannot be resolved: {error}") from error
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def require_safe_host(host: str, keys: tuple[ApiKey, ...]) -> None:
    """Raise SettingsError where a service without keys would be reachable from other machines."""
    if not keys and not is_loopback(host):
        raise SettingsError(
            f"refusing to listen on {host} without an API key: anyone who reaches the port could use the teacher. "
            "Set --api-key-file (or LOGITCASK_API_KEY), or listen on 127.0.0.1"
        )


class BrowserGuard:
    """For a service without keys: no web page may use it through the browser of somebody on this machine.

    A Host that is no loopback name is refused, so that a page cannot rebind its own name to us. A request that changes
    something is refused when a browser says that it comes from a page of another origin; a browser sends some of them
    (form types, plain text) without asking first. Programs send neither `Origin` nor `Sec-Fetch-Site`.

    Args:
        app: What it guards.
        allowed: Origins whose pages may, because the operator says so; as browsers write them.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str] = ()) -> None:
        self._app = app
        self._allowed = frozenset(origin.lower() for origin in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and (problem := self._refusal(scope)) is not None:
            await ProblemResponse(problem, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not _names_loopback(hosts[0]):
            name = hosts[0] if hosts else "nothing"
            return Problem(
                403,
                "foreign_host",
                f"a service without an API key answers to loopback names only, not to {name!r}: ask for 127.0.0.1 or "
                "localhost, or start the service with --api-key-file",
            )
        if scope["method"] in READING or (origins and all(origin.lower() in self._allowed for origin in origins)):
            return None
        foreign = any(origin.partition("://")[2].lower() != hosts[0].lower() for origin in origins)
        foreign |= any(site not in ("same-origin", "none") for site in headers.getlist("sec-fetch-site"))
        if not foreign:
            return None
        return Problem(
            403,
            "foreign_origin",
            f"the request comes from a web page ({', '.join(origins) or 'of another site'}), and a service without an "
            "API key takes none from pages of another origin; name it with --allowed-origin, or start the service "
            "with --api-key-file",
        )


def _names_loopback(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
