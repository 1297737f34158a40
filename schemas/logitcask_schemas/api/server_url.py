"""Where a service is, from what a person types: `localhost:8000`, `gpu-box`, `[::1]:8000/`, `https://host/a/v1`."""

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from logitcask_schemas.errors import LogitcaskError

DEFAULT_PORT: Final = 8000


class ServerUrlError(LogitcaskError, ValueError):
    """The text does not say where a service is."""


def service_url(text: str) -> str:
    """The base URL, without a slash at its end.

    Without a scheme it is http, and without scheme and port port 8000. A trailing `/v1`, as OpenAI's clients have it,
    is left out. Raises ServerUrlError.
    """
    stripped = text.strip()
    scheme, separator, rest = stripped.partition("://")
    if not separator:
        scheme, rest = "http", stripped.removeprefix("//")
    elif scheme.lower() not in ("http", "https"):
        raise ServerUrlError(f"{text!r}: the service speaks http, not {scheme}; expected http://HOST:PORT")
    if _is_ipv6(rest):
        rest = f"[{rest}]"
    try:
        parts = urlsplit(f"{scheme.lower()}://{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        brackets = ", with an IPv6 address in brackets: http://[::1]:8000" if rest.count(":") > 1 else ""
        raise ServerUrlError(f"{text!r} is no URL ({error}); expected http://HOST:PORT{brackets}") from error
    if not host or any(character.isspace() for character in parts.netloc) or not parts.netloc.isprintable():
        raise ServerUrlError(f"{text!r} names no host; expected http://HOST:PORT")
    if port == 0:
        raise ServerUrlError(f"{text!r}: a service cannot be reached at port 0; expected the port that it printed")
    if parts.username is not None or parts.password is not None:
        raise ServerUrlError("a key does not belong into the URL; use --api-key-file or LOGITCASK_API_KEY")
    if parts.query or parts.fragment:
        raise ServerUrlError(f"{text!r} has a query or fragment; expected http://HOST:PORT")
    if port is None and not separator:
        port = DEFAULT_PORT
    name = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{name}{f':{port}' if port is not None else ''}{path}"


def is_local(url: str) -> bool:
    """Whether a URL names this machine, which no proxy can reach for us."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
