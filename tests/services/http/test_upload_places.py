"""Uploads at once are bounded: beyond that the service asks for patience, and its clients have it."""

import functools
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from logitcask_schemas.api import exchange
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.exchange import ServiceError
from logitcask_services.http import upload_places
from tests.support.services.service_harness import jsonl, wait_for

LINES = jsonl([{"text": f"line {number}"} for number in range(100)])


@pytest.fixture
def server(serve):
    return serve(max_uploads=2)


class HeldUploads:
    """Uploads that go on until they are released."""

    def __init__(self, start, release):
        self._start = start
        self.release = release

    def __call__(self, path="/v1/corpora", number=0):
        return self._start(path, number)


@pytest.fixture
def hold(server):
    """A function: an upload to a path that goes on until its `release` is set; gives its future answer."""
    release = threading.Event()
    pool = ThreadPoolExecutor(8)

    def blocks(number):
        yield jsonl([{"text": f"held {number}"}])
        release.wait(60)
        yield LINES

    def upload(path, number):
        headers = {"Content-Type": "application/octet-stream"}
        return httpx2.post(f"{server.url}{path}", content=blocks(number), headers=headers, timeout=60)

    def start(path="/v1/corpora", number=0):
        return pool.submit(upload, path, number)

    yield HeldUploads(start, release)
    release.set()
    pool.shutdown()


def is_counted(server, line):
    return line in server.client.get("/metrics").text


def taken(server):
    return server._server.config.app.state.upload_places.taken


def test_beyond_the_limit_there_is_an_answer_and_a_time(server, hold):
    part_of = server.client.post("/v1/uploads", json={"bytes": 10_000, "filename": "a", "purpose": "batch"}).json()
    parts = f"/v1/uploads/{part_of['id']}/parts"
    held = [hold(), hold(parts)]
    wait_for(lambda: taken(server) == 2)
    for path in ("/v1/corpora", parts):
        refused = server.client.post(path, content=LINES, headers={"Content-Type": "application/octet-stream"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_uploads")
        assert refused.headers["retry-after"] == "5"
    refused = server.client.post("/v1/files", files={"file": ("a.jsonl", LINES)}, data={"purpose": "batch"})
    assert refused.status_code == 503
    hold.release.set()
    assert [future.result().status_code for future in held] == [201, 200]
    wait_for(lambda: taken(server) == 0)
    assert server.client.post("/v1/corpora", content=LINES).status_code == 201


def test_a_refused_or_broken_upload_gives_its_place_back(server):
    for _ in range(3):
        assert server.client.post("/v1/corpora", content=b"").status_code == 400

    def breaks():
        yield LINES
        raise OSError("the client is gone")

    for times in range(1, 4):
        with pytest.raises(OSError, match="is gone"):
            server.client.post("/v1/corpora", content=breaks())
        wait_for(functools.partial(is_counted, server, f'logitcask_refusals_total{{code="client_gone"}} {times}.0'))
    assert taken(server) == 0
    assert server.client.post("/v1/corpora", content=LINES).status_code == 201


@pytest.fixture
def large_file(tmp_path):
    """More than the buffers between client and service hold."""
    path = tmp_path / "large.jsonl"
    path.write_bytes(jsonl([{"text": "x" * 1000}]) * 20_000)
    return path


def test_a_client_waits_and_goes_on(server, hold, large_file, monkeypatch):
    monkeypatch.setattr(upload_places, "RETRY_SECONDS", 1)
    held = [hold(number=1), hold(number=2)]
    wait_for(lambda: taken(server) == 2)
    with ServiceClient(server.url) as client, ThreadPoolExecutor(1) as pool:
        uploading = pool.submit(client.upload, large_file)
        wait_for(lambda: 'code="too_many_uploads"} 2' in server.client.get("/metrics").text)
        hold.release.set()
        assert uploading.result(60).sha256 == hashlib.sha256(large_file.read_bytes()).hexdigest()
    assert [future.result().status_code for future in held] == [201, 201]


def test_patience_ends(server, hold, large_file):
    hold(number=1), hold(number=2)
    wait_for(lambda: taken(server) == 2)
    with ServiceClient(server.url, patience_seconds=0.0) as client, pytest.raises(ServiceError) as refused:
        client.upload(large_file)
    assert (refused.value.status, refused.value.code, refused.value.retry_after_seconds) == (503, "too_many_uploads", 5)


def test_a_service_that_asks_for_long_is_not_waited_for(server, hold, large_file, monkeypatch):
    monkeypatch.setattr(upload_places, "RETRY_SECONDS", int(exchange.LONGEST_PAUSE) + 1)
    hold(number=1), hold(number=2)
    wait_for(lambda: taken(server) == 2)
    with ServiceClient(server.url) as client, pytest.raises(ServiceError, match="uploads are under way"):
        client.upload(large_file)
