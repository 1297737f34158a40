"""What connections may cost: silent ones are let go, heads are bounded, jobs keep descriptors, logs stay small."""

import json
import re
import resource
import signal
import socket
import subprocess
from contextlib import ExitStack

import httpx2
import pytest

from logitcask_services.http import server as server_module
from logitcask_services.http.access import MAX_HEAD_BYTES
from logitcask_services.http.connections import ConnectionLimits, H11Connection
from tests.support.services.service_harness import FAKE_SERVER, FINAL, jsonl, server_environment, wait_for

HALF_LINE = b"GET /health HT"
HALF_UPLOAD = b"POST /v1/corpora HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + b'{"text": "a"}\n'
CHUNKED = b"POST /v1/corpora HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def connect():
    """A function that opens a connection and sends the beginning of something."""
    with ExitStack() as opened:

        def open_connection(url: str, first: bytes = b"") -> socket.socket:
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            connection = opened.enter_context(socket.create_connection(address, timeout=30))
            connection.sendall(first)
            return connection

        yield open_connection


def ended(connection: socket.socket) -> bool:
    """Whether the service has let the connection go, with or without an answer."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def test_answers_do_not_wait_for_acknowledgements(serve):
    """TCP_NODELAY on each accepted connection: with Nagle's algorithm a kept connection answers in 44 ms."""
    server = serve()
    server.client.get("/health")
    (connection,) = server._server.server_state.connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.fixture(params=["httptools", "h11"])
def parser(request, monkeypatch):
    """Both of uvicorn's parsers; h11 is what there is without vLLM."""
    if request.param == "h11":
        monkeypatch.setattr(server_module, "connection_class", lambda: H11Connection)
    else:
        pytest.importorskip("httptools")


@pytest.mark.usefixtures("parser")
def test_silent_connections_are_let_go(serve, connect, tmp_path):
    """Whatever they are silent in: before a request, in its head, in its body, after an answer."""
    server = serve(limits=ConnectionLimits(request_seconds=0.2, body_seconds=0.2))
    connections = [connect(server.url, first) for first in (b"", HALF_LINE, HEALTH, HALF_UPLOAD) * 10]
    assert all(map(ended, connections))
    text = server.client.get("/metrics").text
    (let_go,) = re.findall(r'^logitcask_connections_let_go_total{reason="overdue"} (.*)$', text, re.MULTILINE)
    assert 30 <= float(let_go) <= 40  # uvicorn may be first with the ten that wait after an answer
    wait_for(lambda: not list((tmp_path / "state" / "corpora" / "incoming").iterdir()))
    assert server.client.get("/health").status_code == 200


def test_streams_leave_connections_to_others(serve, connect):
    server = serve(limits=ConnectionLimits(connections=4), fake={"seconds_per_document": 5.0})
    job = server.submit(server.upload([{"text": "hello"}]))
    path = f"/v1/extractions/{job['id']}/events"
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    held = [connect(server.url, head.encode()) for _ in range(2)]
    assert [stream.recv(12) for stream in held] == [b"HTTP/1.1 200"] * 2
    refused = server.client.get(path, headers={"Accept": "text/event-stream"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_streams")
    assert server.client.get(path).status_code == 200  # page by page
    held.pop().close()

    def follows():
        with server.client.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
            return answer.status_code == 200

    wait_for(follows)


def test_a_client_that_takes_no_answer_is_let_go(serve, connect):
    server = serve(limits=ConnectionLimits(answer_seconds=0.2))
    connection = connect(server.url, HEALTH.replace(b"/health", b"/openapi.json") * 1000)
    wait_for(lambda: server._server.server_state.connections)
    wait_for(lambda: not server._server.server_state.connections)
    assert ended(connection)


def test_who_leaves_with_requests_under_way_is_noticed(serve, connect):
    """Also when the client has sent another request behind the one that is being answered."""
    server = serve(fake={"seconds_per_document": 5.0})
    job = server.submit(server.upload([{"text": "hello"}]))
    stream = f"GET /v1/extractions/{job['id']}/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    connection = connect(server.url, stream.encode() + HEALTH)
    assert connection.recv(12) == b"HTTP/1.1 200"
    connection.close()
    wait_for(lambda: len(server._server.server_state.tasks) == 0, 4)


def test_the_longest_silent_gives_its_place(serve, connect):
    """A new client is served although all places are held; who is being served keeps its place."""
    server = serve(limits=ConnectionLimits(connections=4, room_seconds=0.0), fake={"seconds_per_document": 0.2})
    job = server.submit(server.upload([{"text": "hello"}]))
    events = httpx2.Client(base_url=server.url, headers={"Accept": "text/event-stream"})
    with events, events.stream("GET", f"/v1/extractions/{job['id']}/events") as stream:
        held = [connect(server.url, first) for first in (HALF_LINE, HALF_UPLOAD, b"") * 10]
        server.client.close()
        with httpx2.Client(base_url=server.url) as late:
            assert late.get("/health").status_code == 200
        assert "completed" in "".join(stream.iter_text())
    assert sum(map(ended, held[:20])) == 20
    with httpx2.Client(base_url=server.url) as late:
        text = late.get("/metrics").text
    assert 'logitcask_connections_let_go_total{reason="room"}' in text
    assert "logitcask_connections " in text


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (16 << 20) + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200_000 + b"\r\n",
        b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health?" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"POST /v1/corpora HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * (1 << 20),
        b"POST /v1/corpora HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        + b"a: b\r\n" * 200_000,
    ],
    ids=["a header", "headers", "URL", "query", "few bytes, many headers", "chunk extension", "trailers"],
)
def test_heads_are_bounded(serve, connect, head):
    server = serve()
    connection = connect(server.url)
    try:
        connection.sendall(head)
        answer = connection.recv(1 << 16)
    except ConnectionError:
        answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    assert server.client.get("/health").status_code == 200


@pytest.mark.usefixtures("parser")
def test_what_is_not_http_is_a_problem(serve, connect):
    answer = b""
    connection = connect(serve().url, b"EHLO localhost\r\n\r\n")
    while part := connection.recv(1 << 16):
        answer += part
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_places_are_what_the_jobs_leave(monkeypatch):
    def limit(descriptors):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
        return ConnectionLimits.of_process().connections

    assert [limit(number) for number in (64, 256, 1024, 65_536)] == [8, 32, 416, 1024]


def test_300_idle_connections_at_256_fds(tmp_path, connect):
    """256 descriptors, 300 connections that ask for nothing, an extraction: it completes, and the log stays small."""
    settings = {
        "cask_root": str(tmp_path / "casks"),
        "port": 0,
        "chunk_positions": 50,
        "disk_floor_bytes": 0,
        "fake": {"seconds_per_document": 0.02},
    }
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            ["bash", "-c", 'ulimit -n 256; exec "$0" "$@"', *FAKE_SERVER, json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=server_environment(),
        )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        with httpx2.Client(base_url=url, timeout=30) as client:
            wait_for(lambda: client.get("/health/ready").status_code == 200, 60)
            documents = [{"input_ids": [number, *range(20)]} for number in range(60)]
            corpus = client.post("/v1/corpora", content=jsonl(documents)).json()
            job = client.post("/v1/extractions", json={"corpus_id": corpus["id"], "cask": "c"}).json()
            for number in range(300):
                connect(url, HALF_LINE if number % 2 else HALF_UPLOAD)
            with httpx2.Client(base_url=url, timeout=30) as late:
                path = f"/v1/extractions/{job['id']}"
                wait_for(lambda: late.get(path).json()["status"] in FINAL, 60)
                assert late.get(path).json()["status"] == "completed"
                assert late.get("/health").status_code == 200
                body = {"corpus_id": corpus["id"], "cask": "late"}
                second = f"/v1/extractions/{late.post('/v1/extractions', json=body).raise_for_status().json()['id']}"
                wait_for(lambda: late.get(second).json()["status"] in FINAL, 60)
                assert late.get(second).json()["status"] == "completed", "begun beside all those connections"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "stderr").stat().st_size < 20_000
