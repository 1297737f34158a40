"""Where the service is: what a person types works, or is told in a line."""

import pytest

from logitcask_schemas.api.server_url import service_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        ("//localhost:8000", "http://localhost:8000"),
        ("gpu-box", "http://gpu-box:8000"),
        ("http://gpu-box", "http://gpu-box"),
        ("  HTTPS://Host.example/teacher/v1/ ", "https://host.example/teacher"),
        ("http://localhost:8000/v1", "http://localhost:8000"),
        ("localhost:8000/v1/", "http://localhost:8000"),
        ("http://localhost:8000///", "http://localhost:8000"),
        ("::1", "http://[::1]:8000"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("http://[::1]:9000/", "http://[::1]:9000"),
        ("http://::1", "http://[::1]"),
    ],
)
def test_ways_to_write_a_server(text, url):
    assert service_url(text) == url
    assert service_url(url) == url


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://host", "the service speaks http, not ftp"),
        ("unix:///run/x", "the service speaks http, not unix"),
        ("", "names no host"),
        ("http://", "names no host"),
        (":8000", "names no host"),
        ("http://my host", "names no host"),
        ("localhost:http", "is no URL"),
        ("localhost:99999", "is no URL"),
        ("localhost:0", "port 0"),
        ("::1:18071", "with an IPv6 address in brackets: http://[::1]:8000"),
        ("http://[::1", "is no URL"),
        ("http://user:secret@host", "a key does not belong into the URL"),
        ("http://host?x=1", "has a query"),
    ],
)
def test_servers_that_are_none(run, text, words):
    code, _, err = run(None, "jobs", "ls", "--server", text)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert "secret" not in err


def test_a_server_from_the_command_line(serve, run, monkeypatch):
    server = serve()
    port = server.url.rpartition(":")[2]
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no proxy reaches this machine's own loopback
    for text in (f"localhost:{port}", f"http://127.0.0.1:{port}/v1", f"127.0.0.1:{port}/"):
        assert run(None, "jobs", "ls", "--server", text)[0] == 0, text
    code, _, err = run(None, "jobs", "ls", "--server", "localhost:9")
    assert (code, "no service answers at http://localhost:9 (" in err) == (1, True)
    assert len(err.splitlines()) == 1
    code, _, err = run(None, "jobs", "ls", "--server", f"https://127.0.0.1:{port}")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "does not speak https ([SSL" in err
    assert f"name http://127.0.0.1:{port} with --server" in err
    code, _, err = run(None, "jobs", "ls", "--server", "https://localhost:9")
    assert (code, "no service answers at https://localhost:9 (" in err) == (1, True)


def test_a_key_that_no_header_can_carry(run, monkeypatch):
    monkeypatch.setenv("LOGITCASK_API_KEY", "ключ-ключ")
    code, _, err = run(None, "jobs", "ls")
    assert (code, "the API key holds characters that no key has" in err) == (2, True)
