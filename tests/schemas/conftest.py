"""Fixtures of the schemas' tests."""

from pathlib import Path

import pytest

from logitcask_schemas.cask import CaskWriter
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher


@pytest.fixture
def cask_path(tmp_path: Path) -> Path:
    """A closed cask of two shards: five documents, then three."""
    path = tmp_path / "cask"
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish(make_documents([2, 3, 40, 7, 500], seed=1))
        writer.publish(make_documents([11, 2, 64], seed=2))
    return path
