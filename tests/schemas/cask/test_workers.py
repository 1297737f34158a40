"""A cask in worker processes: forked ones inherit the mapping, spawned ones map anew; both number documents alike."""

import os
import pickle
from multiprocessing import get_context
from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.reader import MAX_OPEN_SHARDS
from tests.support.schemas.cask_samples import SPEC, make_document, make_teacher


def digests(cask: Cask) -> list[bytes]:
    return [cask.read(number).id + cask.read(number).records.head_logprobs_H.tobytes() for number in range(len(cask))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("touched", [False, True], ids=["fresh", "already mapped"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_read_what_the_parent_reads(cask_path: Path, method: str, touched: bool) -> None:
    cask = Cask.open(cask_path)
    expected = digests(Cask.open(cask_path))
    if touched:
        digests(cask)
    with get_context(method).Pool(2) as pool:
        assert pool.map(digests, [cask] * 4) == [expected] * 4


def test_a_pickled_cask_keeps_its_numbering(cask_path: Path) -> None:
    cask = Cask.open(cask_path)
    before = digests(cask)
    writer = CaskWriter.create(cask_path, teacher=make_teacher(), capture=SPEC)
    for seed in range(5):
        writer.publish([make_document(4, 100 + seed)])
    copy = pickle.loads(pickle.dumps(cask))
    assert digests(copy) == before
    assert len(Cask.open(cask_path)) == len(before) + 5


def test_open_shards_cost_no_file_descriptors(cask_path: Path) -> None:
    """A cask may have more shards than a process may open files."""
    cask = Cask.open(cask_path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    views = [cask.read(number) for number in range(len(cask))]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert views


def test_the_oldest_mapping_is_let_go(cask_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_OPEN_SHARDS < 65_530
    monkeypatch.setattr("logitcask_schemas.cask.reader.MAX_OPEN_SHARDS", 1)
    cask = Cask.open(cask_path)
    document = cask.read(0)
    content = document.records.head_ids_H.tobytes()
    cask.read(len(cask) - 1)
    assert list(cask._open) == [1]
    assert document.records.head_ids_H.tobytes() == content
