"""Who looks at the page: a key is asked for once, and a signed cookie stands for it until logout.

The cookie holds a random name of a session and its HMAC under a secret of this process; the key stays in memory here.
Each request looks the key up again, so a key that the operator removes ends its sessions. Scripts cannot read the
cookie (HttpOnly), and no other site's request carries it (SameSite=Strict). A restart of the service asks anew.
"""

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from logitcask_services.http.key_ring import KeyRing
from logitcask_services.http.key_use import READING
from logitcask_services.http.pages.viewer.rendering import JsonAnswer, Pages

COOKIE: Final = "logitcask_session"
LIFE_SECONDS: Final = 12 * 3600.0
MAX_SESSIONS: Final = 1000
"""Beyond that the oldest one ends."""
MAX_FIELDS: Final = 4
LOGIN, LOGOUT = "/ui/login", "/ui/logout"


class Sessions:
    """Sessions of one process. Thread-safe.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._keys: dict[str, tuple[float, str]] = {}

    def begin(self, key: str) -> str:
        """The cookie's value for a new session with this key."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._keys[name] = (self._clock() + LIFE_SECONDS, key)
            while len(self._keys) > MAX_SESSIONS:
                self._keys.pop(next(iter(self._keys)))
        return f"{name}.{self._signature(name)}"

    def key(self, cookie: str | None) -> str | None:
        """The key of a session; None where the cookie is forged, or its session is over."""
        if (name := self._name(cookie)) is None:
            return None
        with self._lock:
            end, key = self._keys.get(name, (0.0, ""))
            if self._clock() < end:
                return key
            self._keys.pop(name, None)
        return None

    def end(self, cookie: str | None) -> None:
        """Forget a session."""
        if (name := self._name(cookie)) is not None:
            with self._lock:
                self._keys.pop(name, None)

    def _name(self, cookie: str | None) -> str | None:
        name, _, signature = (cookie or "").partition(".")
        is_ours = hmac.compare_digest(signature.encode(), self._signature(name).encode())
        return name if is_ours else None

    def _signature(self, name: str) -> str:
        return hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()


class SessionGuard:
    """Lets requests through that carry a session of a key that is still good; asks others for one.

    Args:
        app: What is guarded.
        keys: Of the service; without any, everybody is let through.
        sessions: Those that have begun.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, sessions: Sessions) -> None:
        self._app = app
        self._keys = keys
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request = Request(scope)
        if self._keys.open or is_signed_in(request, self._keys, self._sessions):
            await self._app(scope, receive, send)
            return
        if request.url.path.startswith("/ui/api/"):
            detail = "the page's data need its session: open the page and give a key"
            problem = {"type": "about:blank", "title": "Unauthorized", "status": 401, "detail": detail}
            answer: Response = JsonAnswer(problem, status_code=401, media_type="application/problem+json")
        elif "HX-Request" in request.headers:  # which would put the form into the place of a button
            answer = Response(status_code=401, headers={"HX-Redirect": LOGIN})
        else:
            place = _place(request) if request.method in READING else "/"
            answer = RedirectResponse(f"{LOGIN}?next={quote(place, safe='')}", status_code=303)
        await answer(scope, receive, send)


def is_signed_in(request: Request, keys: KeyRing, sessions: Sessions) -> bool:
    """Whether a request carries the session of a key that the service accepts."""
    key = sessions.key(request.cookies.get(COOKIE))
    return key is not None and keys.principal(key) is not None


def _place(request: Request) -> str:
    query = request.url.query
    return request.url.path + (f"?{query}" if query else "")


class LoginPages:
    """The form that asks for a key, what it sends, and logout."""

    def __init__(self, pages: Pages, keys: KeyRing, sessions: Sessions) -> None:
        self._pages = pages
        self._keys = keys
        self._sessions = sessions

    async def login(self, request: Request) -> Response:
        """GET: the form. POST: begins a session, or shows the form again with 401."""
        target = _own_path(request.query_params.get("next", "/"))
        if self._keys.open:
            return RedirectResponse(target, status_code=303)
        if request.method != "POST":
            return self._pages.show(request, "login.html", target=target, refused=False)
        key = await _field(request, "key")
        if self._keys.principal(key) is None:
            return self._pages.show(request, "login.html", status=401, target=target, refused=True)
        answer = RedirectResponse(target, status_code=303)
        answer.set_cookie(
            COOKIE,
            self._sessions.begin(key),
            max_age=int(LIFE_SECONDS),
            path="/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return answer

    async def logout(self, request: Request) -> Response:
        """POST: ends the session."""
        self._sessions.end(request.cookies.get(COOKIE))
        answer = RedirectResponse(LOGIN, status_code=303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer


async def _field(request: Request, name: str) -> str:
    """A field of a form; empty where there is none."""
    body = await request.body()
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=MAX_FIELDS, strict_parsing=False)
    except ValueError:
        return ""
    return fields.get(name, [""])[0].strip()


def _own_path(path: str) -> str:
    """A path of this service to go to; the first page for all that a browser could read as another place."""
    is_own = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if is_own else "/"
