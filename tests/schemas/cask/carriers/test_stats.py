"""Figures of casks whose carrier compresses."""

from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.describe import cask_stats
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher


@pytest.mark.parametrize("carrier", CARRIERS)
def test_columns_add_up_to_the_files(tmp_path: Path, carrier: str) -> None:
    with CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC, carrier=carrier) as writer:
        writer.publish(make_documents([3000, 40], 1))
    stats = cask_stats(Cask.open(tmp_path))
    assert sum(stats.column_bytes_per_token.values()) == pytest.approx(stats.bytes_per_token)
    assert ("overhead" in stats.column_bytes_per_token) == (carrier == "arrow")
