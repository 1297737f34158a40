"""What clients may do to each other: many watchers, slow ones, deep nesting, hostile names. All others are served."""

import asyncio
import json
import socket

import httpx2
import pytest

from tests.support.services.service_harness import FINAL, wait_for

WATCHERS = 200


def test_200_watchers(serve):
    """All follow the extraction to its end, and meanwhile others are answered."""
    server = serve(fake={"seconds_per_document": 0.3})
    job = server.submit(server.upload([{"text": f"hello {number}"} for number in range(10)]))
    path = f"/v1/extractions/{job['id']}/events"

    async def watch(client, begun):
        async with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
            assert answer.status_code == 200
            begun.release()
            return "".join([text async for text in answer.aiter_text()])

    async def all_watch():
        limits, begun = httpx2.Limits(max_connections=WATCHERS + 1), asyncio.Semaphore(0)
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            watching = [asyncio.create_task(watch(client, begun)) for _ in range(WATCHERS)]
            for _ in range(WATCHERS):
                await begun.acquire()
            assert (await client.get("/health")).status_code == 200
            return await asyncio.gather(*watching)

    logs = asyncio.run(all_watch())
    assert server.get(job["id"])["status"] == "completed"
    numbers = {tuple(line for line in text.splitlines() if line.startswith("id: ")) for text in logs}
    assert len(numbers) == 1  # the same events for everybody
    assert all('"status": "completed"' in text for text in logs)
    wait_for(lambda: server._server.config.app.state.streams._open == 0)


def test_clients_that_take_their_time(serve):
    """Requests that come a byte at a time, and answers that nobody takes, hold up nobody."""
    server = serve(fake={"seconds_per_document": 0.02})
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    slow = [socket.create_connection(address, timeout=30) for _ in range(20)]
    try:
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        job = server.submit(server.upload([{"text": f"hello {number}"} for number in range(20)]))
        for byte in request[:20]:
            for connection in slow:
                connection.sendall(bytes([byte]))
            assert server.client.get("/health").status_code == 200
        for connection in slow:
            connection.sendall(request[20:] + request * 4)  # and never reads
        assert server.finish(job["id"])["status"] == "completed"
        assert slow[0].recv(12) == b"HTTP/1.1 200"
    finally:
        for connection in slow:
            connection.close()


def nested(depth, kind):
    return b"[" * depth + b"]" * depth if kind == "list" else b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize("kind", ["list", "object"])
@pytest.mark.parametrize("depth", [100, 5_000, 80_000])
def test_nesting_is_a_problem_of_the_client(serve, depth, kind):
    server = serve()
    corpus = server.upload(b'{"text": "a", "more": ' + nested(depth, kind) + b"}\n" + b'{"text": "b"}\n')
    job = server.submit(corpus)
    for field in ("metadata", "cask", "capture"):
        body = b'{"corpus_id": "x", "' + field.encode() + b'": ' + nested(depth, kind) + b"}"
        for path in ("/v1/extractions", "/v1/generations", "/v1/score"):
            answer = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422), answer.text[:300]
            assert len(answer.content) < 1 << 20
    done = server.finish(job["id"])
    assert (done["status"], done["request_counts"]["total"]) == ("completed", 2)
    told = "the line is nested too deeply to be read as JSON"
    assert [error["message"] for error in server.errors(job["id"])] == ([] if depth == 100 else [told])


NAMES = [
    "../../etc/passwd",
    "..",
    "a/b",
    "a\\b",
    "nul\x00l",
    "\x1b]0;pwned\x07",
    "line\nbreak",
    "\u202egnp.exe",
    "{{7*7}}",
    "%s%n",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "x" * 5000,
    "😀" * 50,
    ".hidden",
    "-rf",
    "CON",
    " ",
]


def test_hostile_names(serve, tmp_path):
    """As names of casks, corpora and jobs, in metadata and ids: refused, or kept as they are."""
    server = serve()
    corpus = server.upload([{"text": "hello"}])
    before = {path for path in tmp_path.rglob("*") if "state" not in path.parts}
    for name in NAMES:
        answer = server.client.post("/v1/corpora", params={"name": name}, content=b'{"text": "hello"}\n')
        assert answer.status_code in (200, 422), name
        answer = server.client.post("/v1/extractions", json={"corpus_id": corpus["id"], "cask": name})
        assert answer.status_code == 422 or name == "CON", name
        answer = server.client.post("/v1/extractions", json={"corpus_id": name, "cask": "c"})
        assert answer.status_code in (404, 422), name
        answer = server.client.get(f"/v1/corpora/{httpx2.QueryParams({'x': name})!s}")
        assert answer.status_code in (404, 422), name
    metadata = {f"name {number}": name[:500] for number, name in enumerate(NAMES[:16])}
    answer = server.client.post("/v1/extractions", json={"corpus_id": corpus["id"], "cask": "c", "metadata": metadata})
    assert answer.status_code == 202
    assert server.finish(answer.json()["id"])["metadata"] == metadata
    new = {path for path in tmp_path.rglob("*") if "state" not in path.parts} - before
    assert {path.relative_to(tmp_path / "casks").parts[0] for path in new} <= {"c", "CON"}
    line = json.dumps({"text": "hello", "custom_id": NAMES[5] + NAMES[6]}).encode() + b"\n\xff\n"
    job = server.submit(server.upload(line), cask="d")
    assert server.finish(job["id"])["status"] in FINAL
    assert "\x1b" not in server.client.get(f"/v1/extractions/{job['id']}/errors").text
