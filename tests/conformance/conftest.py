"""Fixtures for casks in object stores: one S3 server for the whole session, and a small cask to put there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import CaskWriter
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher
from tests.support.schemas.s3_server import bucket, s3_server

__all__ = ["bucket", "s3_server"]

SHARDS = 3
LENGTHS = (20, 120, 7)


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
