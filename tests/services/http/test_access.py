"""Who may call: keys, loopback, names."""

import re
import socket

import pytest
from pydantic import ValidationError

from logitcask_services.http.access import is_loopback, require_safe_host
from logitcask_services.http.key_ring import KeyRing
from logitcask_services.http.key_use import READING
from logitcask_services.http.server import bind
from logitcask_services.keys import ANONYMOUS, ApiKey
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings, SettingsError
from tests.support.services.fake_teacher import fake_teacher
from tests.support.services.scoring import code_of
from tests.support.services.service_harness import RunningServer

KEY = "a-long-enough-key"


def test_without_a_key_only_loopback():
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        require_safe_host(host, ())
    key = ApiKey.nameless(KEY)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(SettingsError, match=r"refusing to listen .* without an API key.*--api-key-file"):
            require_safe_host(host, ())
        require_safe_host(host, (key,))
    assert not is_loopback("0.0.0.0")


def test_unresolvable_host():
    with pytest.raises(SettingsError, match="cannot be resolved"):
        is_loopback("no-such-host.invalid")


def test_key_ring():
    ring = KeyRing((ApiKey.nameless(KEY), ApiKey.nameless("another-key")))
    assert ring.principal(KEY) == ring.find(KEY).name != ring.principal("another-key")
    assert KEY not in str(ring.find(KEY))
    for stranger in (None, "", KEY[:-1], KEY + " ", "ключ"):
        assert ring.find(stranger) is None
    assert KeyRing(()).find(None) is ANONYMOUS


def test_routes_ask_for_the_key(serve):
    server = serve(api_key=KEY)
    assert server.client.get("/v1/models").status_code == 200
    for path in ("/v1/models", "/v1/corpora", "/v1/extractions", "/v1/extractions/x", "/v1/extractions/x/events"):
        for headers in (
            {"Authorization": "Bearer wrong-key"},
            {"Authorization": ""},
            {"Authorization": f"Basic {KEY}"},
        ):
            answer = server.client.get(path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["error"]["type"] == "authentication_error"
            assert KEY not in answer.text
    denied = server.client.post("/v1/corpora", content=b'{"text": "a"}', headers={"Authorization": ""})
    assert denied.status_code == 401
    for path in ("/health", "/health/ready", "/version", "/metrics"):
        assert server.client.get(path, headers={"Authorization": ""}).status_code in (200, 503)


def test_foreign_names_are_refused_without_a_key(serve):
    server = serve()
    for host in ("evil.example", "evil.example:80", "169.254.1.1", ""):
        answer = server.client.get("/v1/models", headers={"Host": host})
        assert answer.status_code == 403, host
        assert answer.json()["error"]["code"] == "foreign_host"
    for host in ("localhost", "localhost:1", "127.0.0.1", "[::1]:80", "[::1]"):
        assert server.client.get("/v1/models", headers={"Host": host}).status_code == 200, host


SIMPLE = "text/plain", "application/x-www-form-urlencoded", "application/jsonl", None
"""The first two, and none at all, a browser sends to other origins without asking first."""


@pytest.mark.parametrize("media_type", SIMPLE)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_cross_site_post_refused(open_server, headers, media_type):
    """Without a key, whatever a page can make a browser send is refused where it would write."""
    kind = {"Content-Type": media_type} if media_type else {}
    for path in ("/v1/corpora", "/v1/extractions", "/v1/extractions/x/cancel"):
        answer = open_server.client.post(path, content=b'{"text": "a"}\n', headers=headers | kind)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin"), path
    assert open_server.client.get("/v1/corpora").json()["data"] == []


def test_cross_site_requests_change_nothing_anywhere(open_server):
    """Every operation that the description has and that is no reading, known today or not."""
    paths = open_server.client.get("/openapi.json").json()["paths"]
    writing = [(method, path) for path, item in paths.items() for method in item if method.upper() not in READING]
    assert len(writing) > 20
    for method, path in writing:
        asked = re.sub(r"\{[^}]*\}", "x", path)
        answer = open_server.client.request(method, asked, headers={"Sec-Fetch-Site": "cross-site"})
        assert code_of(answer) == (403, "foreign_origin"), (method, path)


@pytest.fixture(scope="module")
def open_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open")
    settings = ServiceSettings(teacher=folder, cask_root=folder / "casks", disk_floor_bytes=0)
    server = RunningServer(Service(settings, lambda role: fake_teacher()), None)
    server.start()
    yield server
    server.stop()


def test_programs_and_pages_of_ours_may_write(serve):
    server = serve()
    host = server.url.removeprefix("http://")
    for number, headers in enumerate(({}, {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"})):
        body = b'{"text": "%d"}\n' % number
        assert server.client.post("/v1/corpora", content=body, headers=headers).status_code == 201
    keyed = serve(api_key=KEY, data_dir=server.service.settings.data_dir / "keyed")
    foreign = {"Origin": "http://tools.example", "Sec-Fetch-Site": "cross-site"}
    assert keyed.client.post("/v1/corpora", content=b'{"text": "a"}\n', headers=foreign).status_code == 201


def test_pages_that_the_operator_names_may_write(serve):
    origin = "https://tools.example"
    server = serve(allowed_origins=(origin,))
    page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    answer = server.client.post("/v1/corpora", content=b'{"text": "a"}\n', headers=page)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (201, origin)
    asked = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}
    assert server.client.options("/v1/corpora", headers=asked).status_code == 200
    for other in (f"{origin}.evil.example", "http://tools.example", "null"):
        answer = server.client.post("/v1/corpora", content=b'{"text": "b"}\n', headers={**page, "Origin": other})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    both = [("Origin", origin), ("Origin", "http://evil.example")]
    assert server.client.post("/v1/corpora", content=b'{"text": "b"}\n', headers=both).status_code == 403
    assert server.client.get("/v1/models", headers={**page, "Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("bad", ["tools.example", "https://tools.example/", "*", "null", "https://a b", "https://u@h"])
def test_origins_are_written_as_browsers_do(make_settings, bad):
    with pytest.raises(ValidationError, match="allowed_origins"):
        make_settings(allowed_origins=(bad,))


def test_names_do_not_matter_with_a_key(serve):
    server = serve(api_key=KEY)
    assert server.client.get("/v1/models", headers={"Host": "cluster.example"}).status_code == 200


def test_key_files(tmp_path):
    file = tmp_path / "keys"

    def keys(text):
        file.write_text(text)
        return ServiceSettings(teacher=tmp_path, cask_root=tmp_path, api_key_file=file).api_keys()

    plain = tuple(map(ApiKey.nameless, ("first-key-1", "second-key")))
    assert keys("# people\nfirst-key-1\n\n  second-key  \n") == plain
    with pytest.raises(SettingsError, match="holds no key"):
        keys("# nobody\n")
    for bad in ("short\n", "has spaces in it\n", "clé-trop-accentuée\n"):
        with pytest.raises(SettingsError, match="at least 8 printable ASCII"):
            keys(bad)
    with pytest.raises(SettingsError, match="cannot be read"):
        ServiceSettings(teacher=tmp_path, cask_root=tmp_path, api_key_file=tmp_path / "none").api_keys()
    with pytest.raises(ValidationError, match="keep one"):
        ServiceSettings(teacher=tmp_path, cask_root=tmp_path, api_key_file=file, api_key=KEY)


def test_settings_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGITCASK_TEACHER", str(tmp_path))
    monkeypatch.setenv("LOGITCASK_CASK_ROOT", str(tmp_path / "casks"))
    monkeypatch.setenv("LOGITCASK_PORT", "1234")
    settings = ServiceSettings(port=4321)
    assert settings.port == 4321  # arguments win
    assert settings.state_dir == tmp_path / "casks" / ".logitcask-service"
    monkeypatch.setenv("LOGITCASK_ENGINE", "abacus")
    with pytest.raises(ValidationError, match="vllm"):
        ServiceSettings()


def test_a_port_in_use():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} on 127.0.0.1 is in use .*--port"):
            bind("127.0.0.1", port)
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)
