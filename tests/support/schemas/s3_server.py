"""A server that speaks S3, on loopback, and a bucket in it: fixtures, for whichever tests import them."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from logitcask_schemas.cask.storage.object_store import RemoteStore

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, list[RemoteStore]]]:
    """The server's address, and where to leave a connected store: clients are shared as long as one of them lives."""
    pytest.importorskip("s3fs", reason="object stores need the extra `remote`")
    moto: Any = pytest.importorskip("moto.server", reason="moto is the S3 server of these tests; install the dev extra")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # A line for each request, kept for each test, takes longer than some requests.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    yield f"http://{host}:{port}", []
    server.stop()


@pytest.fixture
def bucket(s3_server: tuple[str, list[RemoteStore]], monkeypatch: pytest.MonkeyPatch, request: Any) -> str:
    """A bucket of this test's own; address and credentials in the environment, as users give them."""
    endpoint, connected = s3_server
    for name, value in {"AWS_ENDPOINT_URL": endpoint, **CREDENTIALS}.items():
        monkeypatch.setenv(name, value)
    url = f"s3://bucket-{abs(hash(request.node.nodeid))}"
    store = RemoteStore(url)
    store._system()[0].mkdir(url)
    if not connected:
        connected.append(store)
    return url
