"""Fixtures for casks in object stores: one S3 server for the whole session, and a small cask to put there."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.cask.storage.object_store import RemoteStore
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher

SHARDS = 3
LENGTHS = (20, 120, 7)
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


@pytest.fixture
def memory(request: Any) -> Iterator[str]:
    """The address of a folder in a store that lives in this process alone, and goes with the test."""
    fsspec: Any = pytest.importorskip("fsspec", reason="object stores need the extra `remote`")
    url = f"memory://bucket-{abs(hash(request.node.nodeid))}"
    yield url
    system = fsspec.filesystem("memory")
    if system.exists(url):
        system.rm(url, recursive=True)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A closed cask of `SHARDS` shards with a document of each of `LENGTHS`."""
    path = tmp_path / "local"
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC) as writer:
        for seed in range(SHARDS):
            writer.publish(make_documents(LENGTHS, seed))
    return path


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands keep what they fetched, in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "logitcask" / "casks"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands make their temporary folders; empty again when they are done."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder
