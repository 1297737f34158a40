"""A bucket, a store that fails as a test says, and servers whose casks lie there."""

import pytest

from tests.support.schemas.s3_server import bucket, s3_server
from tests.support.schemas.store_faults import FaultyStore

__all__ = ["bucket", "s3_server"]


@pytest.fixture
def root(bucket):
    """The URL of a cask root."""
    return f"{bucket}/casks"


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)
    return FaultyStore(monkeypatch)


@pytest.fixture
def serve_there(serve, root):
    """A function: as `serve`, with its casks in the bucket."""

    def start(**settings):
        return serve(cask_root=root, **settings)

    return start
