"""Who may call: Bearer keys in constant time; without a key, loopback only, and no web page behind a false name."""

import hashlib
import hmac
import ipaddress
import socket
from typing import Annotated

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from logitcask_services.http.problems import MEDIA_TYPE, Problem
from logitcask_services.settings import SettingsError

bearer = HTTPBearer(auto_error=False, description="A key of the server's key file. Not needed without one (loopback).")


class KeyRing:
    """The accepted keys."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def open(self) -> bool:
        """Whether the service runs without keys."""
        return not self._digests

    def principal(self, presented: str | None) -> str | None:
        """A name for the caller, or None for a stranger; as fast for a nearly right key as for a wrong one."""
        if self.open:
            return "anonymous"
        digest = hashlib.sha256((presented or "").encode()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:16] if any(matches) else None


def caller(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
    """The caller's name. Raises Problem 401."""
    keys: KeyRing = request.app.state.keys
    principal = keys.principal(credentials.credentials if credentials else None)
    if principal is None:
        what = "is not one of the server's keys" if credentials else "is missing; send `Authorization: Bearer <key>`"
        raise Problem(401, "invalid_api_key", f"the API key {what}", headers={"WWW-Authenticate": "Bearer"})
    return principal


Caller = Annotated[str, Depends(caller)]


def is_loopback(host: str) -> bool:
    """Whether every address of a host name or address is this machine's own loopback."""
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except socket.gaierror as error:
        raise SettingsError(f"the host {host!r} cannot be resolved: {error}") from error
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def require_safe_host(host: str, keys: tuple[str, ...]) -> None:
    """Raise SettingsError where a service without keys would be reachable from other machines."""
    if not keys and not is_loopback(host):
        raise SettingsError(
            f"refusing to listen on {host} without an API key: anyone who reaches the port could use the teacher. "
            "Set --api-key-file (or LOGITCASK_API_KEY), or listen on 127.0.0.1"
        )


class LoopbackNames:
    """Refuses requests whose Host is not a loopback name, so that a web page cannot rebind its own name to us."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and not _names_loopback(scope):
            problem = Problem(403, "foreign_host", "a service without an API key answers to loopback names only")
            response = JSONResponse(problem.body(scope["path"]), status_code=problem.status, media_type=MEDIA_TYPE)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _names_loopback(scope: Scope) -> bool:
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        return False
    name = hosts[0].rsplit(":", 1)[0] if not hosts[0].endswith("]") else hosts[0]
    name = name.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
