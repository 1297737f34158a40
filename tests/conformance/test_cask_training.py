"""Training data is the same whatever carries the cask, in forked and in spawned workers."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# --import-mode=importlib leaves folders off the path; the made-up documents live beside the schemas' tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "schemas"))

from cask_samples import SPEC, make_documents, make_teacher

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.export import export_cask
from logitcask_schemas.cask.export_targets import LocalTarget

torch = pytest.importorskip("torch", reason="training data needs the trainer extra")
from logitcask_consumer.data import CaskDataset, Collator, open_casks  # noqa: E402

U8 = CaptureSpec(logprob_codec="u8")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


def batches(path: Path, workers: str | None) -> list[dict[str, Any]]:
    dataset = CaskDataset(open_casks([path], tokenizer_fingerprint=None), seq_len=64, overlap=8)
    options = {} if workers is None else {"num_workers": 2, "multiprocessing_context": workers}
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=Collator(seq_len=64, pad_id=0), **options)
    return list(loader)


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, column in theirs.items():
            if column is None:
                assert mine[name] is None
            else:
                np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(column), err_msg=name)
                assert mine[name].dtype == column.dtype, name


@pytest.mark.parametrize("spec", [SPEC, U8], ids=["f16", "u8"])
@pytest.mark.parametrize("carrier", ["zarr", "parquet"])
@pytest.mark.parametrize("workers", [None, "fork", "spawn"])
def test_batches_are_those_of_arrow(tmp_path: Path, carrier: str, spec: CaptureSpec, workers: str | None) -> None:
    with CaskWriter.create(tmp_path / "arrow", teacher=make_teacher(), capture=spec) as writer:
        for seed in range(3):
            writer.publish(make_documents([40, 300, 7, 129], seed, spec=spec))
    list(export_cask(Cask.open(tmp_path / "arrow"), LocalTarget(tmp_path / carrier), carrier))
    expected = batches(tmp_path / "arrow", None)
    assert len(expected) > 3
    assert_equal(batches(tmp_path / carrier, workers), expected)
