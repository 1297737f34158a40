"""The session: one key, one cookie that scripts and other sites cannot use, until logout, removal or time ends it."""

import pytest

from logitcask_services.http.pages import session
from logitcask_services.http.pages.session import COOKIE, LIFE_SECONDS, Sessions, _own_path
from tests.support.services.service_harness import wait_for

KEY = "a-key-of-the-server"


@pytest.fixture
def keyed(serve):
    server = serve(api_key=KEY)
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    del server.client.headers["Authorization"]
    return server


def sign_in(server, key=KEY, target="/"):
    return server.client.post(f"/ui/login?next={target}", data={"key": key})


@pytest.mark.parametrize(
    "path", ["/", "/ui/casks", "/ui/casks/x", "/ui/jobs/x", "/ui/corpora/x", "/ui/compare", "/ui/runs"]
)
def test_pages_ask_for_a_key(keyed, path):
    answer = keyed.client.get(path)
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"/ui/login?next={path.replace('/', '%2F')}"


@pytest.mark.parametrize(
    "path", ["/ui/api/overview", "/ui/api/overview/events", "/ui/api/casks", "/ui/api/jobs/x", "/ui/api/corpora/x/rows"]
)
def test_data_ask_for_a_key(keyed, path):
    answer = keyed.client.get(path)
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_key_begins_a_session(keyed):
    answer = sign_in(keyed, target="/ui/casks%3Fx=1")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/ui/casks?x=1"
    cookie = answer.headers["Set-Cookie"]
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={int(LIFE_SECONDS)}"):
        assert attribute in cookie, attribute
    assert "Secure" not in cookie  # plain HTTP on loopback
    assert KEY not in cookie
    page = keyed.client.get("/")
    assert page.status_code == 200
    assert "Log out" in page.text
    assert KEY not in page.text
    assert keyed.client.get("/ui/api/overview").status_code == 200


@pytest.mark.parametrize("key", ["", "wrong", KEY + "x", KEY[:-1], "\x00", "ü"])
def test_a_wrong_key_begins_none(keyed, key):
    answer = sign_in(keyed, key)
    assert answer.status_code == 401
    assert "Set-Cookie" not in answer.headers
    assert "none of the server" in answer.text
    assert keyed.client.get("/").status_code == 303


@pytest.mark.parametrize("body", [b"", b"key", b"\xff\xfe", b"&".join([b"a=1"] * 50), b"key=" + b"x" * 5000])
def test_bodies_that_are_no_form_begin_none(keyed, body):
    answer = keyed.client.post("/ui/login", content=body)
    assert answer.status_code == 401


def test_logout_ends_the_session(keyed):
    sign_in(keyed)
    cookie = keyed.client.cookies[COOKIE]
    assert keyed.client.post("/ui/logout").headers["Location"] == "/ui/login"
    keyed.client.cookies.set(COOKIE, cookie)
    assert keyed.client.get("/").status_code == 303


def test_the_interface_takes_no_cookie(keyed):
    """A page of another site that got a browser to send it would reach nothing that changes anything."""
    sign_in(keyed)
    assert keyed.client.get("/v1/models").status_code == 401


def test_a_changed_cookie_is_none(keyed):
    sign_in(keyed)
    cookie = keyed.client.cookies[COOKIE]
    name, _, signature = cookie.partition(".")
    for forged in ("", name, f"{name}.", f"{name}x.{signature}", f"{name}.{signature[:-1]}0", f".{signature}", "ü.ü"):
        answer = keyed.client.get("/", headers={"Cookie": f"{COOKIE}={forged}".encode()})
        if forged != cookie:
            assert answer.status_code == 303, forged


def test_without_keys_nobody_is_asked(serve):
    server = serve()
    page = server.client.get("/")
    assert page.status_code == 200
    assert "Log out" not in page.text
    assert server.client.get("/ui/login").headers["Location"] == "/"


def test_sessions_end_with_time_and_number(monkeypatch):
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    cookie = sessions.begin("one")
    assert sessions.key(cookie) == "one"
    now[0] = LIFE_SECONDS
    assert sessions.key(cookie) is None
    monkeypatch.setattr(session, "MAX_SESSIONS", 2)
    cookies = [sessions.begin(str(number)) for number in range(3)]
    assert [sessions.key(each) for each in cookies] == [None, "1", "2"]


def test_cookies_of_another_process_are_none():
    assert Sessions().key(Sessions().begin("one")) is None


@pytest.mark.parametrize(
    ("asked", "goes"),
    [
        ("/ui/casks", "/ui/casks"),
        ("/ui/casks?q=%20a", "/ui/casks?q=%20a"),
        ("https://evil.example", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/a\\b", "/"),
        ("\t//evil.example", "/"),
        ("/\n/evil.example", "/"),
        ("", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
def test_login_leads_to_this_service_only(asked, goes):
    assert _own_path(asked) == goes
