"""Packed shards that are decoded document by document give what the whole decode gives, within a limit of memory."""

import gc
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter, lazy_shard
from logitcask_schemas.cask.carriers.packed import PackedFile
from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.format.manifest import EXTENT_VERSION, FORMAT_VERSION
from logitcask_schemas.cask.lazy_shard import DECODED_BYTES, DecodedBlocks, LazyShard
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.errors import CaskCorruptionError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.schemas.cask_samples import SPEC, assert_same, make_documents, make_teacher

pytest.importorskip("numba", reason="packed shards need the extra `packed`")
EVERYTHING = CaptureSpec(logprob_codec="u8", tail_logprobs=True, temperatures=(2.0, 4.0))
LENGTHS, SHARDS = [40, 2, 300, 7, 129], 3


def make_pair(folder: Path, spec: CaptureSpec = SPEC, *, extents: bool = False) -> tuple[Cask, Cask]:
    """The same documents in Arrow shards and packed."""
    with CaskWriter.create(
        folder / "arrow",
        teacher=make_teacher(),
        capture=spec,
        version=EXTENT_VERSION if extents else FORMAT_VERSION,
    ) as writer:
        for seed in range(SHARDS):
            writer.publish(make_documents(LENGTHS, seed, spec=spec, extents=extents))
    arrow = Cask.open(folder / "arrow")
    list(export_cask(arrow, LocalTarget(folder / "packed"), "packed"))
    return arrow, Cask.open(folder / "packed")


@pytest.fixture
def decoded(monkeypatch) -> DecodedBlocks:
    """The memory of a process that has decoded nothing."""
    blocks = DecodedBlocks(DECODED_BYTES)
    monkeypatch.setattr(lazy_shard, "DECODED", blocks)
    return blocks


@pytest.fixture
def decodes(monkeypatch) -> list[int]:
    """How many documents each decode has decoded."""
    counts: list[int] = []
    decoded = PackedFile.decoded

    def counted(self, rows):
        counts.append(len(rows))
        return decoded(self, rows)

    monkeypatch.setattr(PackedFile, "decoded", counted)
    return counts


@pytest.mark.parametrize("extents", [False, True])
@pytest.mark.parametrize("spec", [SPEC, EVERYTHING], ids=["f16", "u8"])
@pytest.mark.parametrize("max_bytes", [0, 30_000, DECODED_BYTES])
def test_documents_and_windows_are_those_of_arrow(tmp_path, decoded, spec, extents, max_bytes):
    arrow, packed = make_pair(tmp_path, spec, extents=extents)
    decoded.max_bytes = max_bytes
    random = np.random.default_rng(0)
    for number in random.permutation(np.repeat(np.arange(len(arrow)), 3)).tolist():
        assert_same(packed.read(number), arrow.read(number))
        length = len(arrow.read(number).token_ids_L)
        start = int(random.integers(0, length - 1))
        stop = int(random.integers(start + 1, length))
        assert_same(packed.read_window(number, start, stop), arrow.read_window(number, start, stop))
    assert decoded._bytes <= max(max_bytes, max(block.bytes for block in decoded._blocks.values()))


@settings(max_examples=30, deadline=None)
@given(
    numbers=st.lists(st.integers(0, len(LENGTHS) * SHARDS - 1), min_size=1, max_size=12), limit=st.integers(0, 60_000)
)
def test_a_batch_is_that_of_arrow(tmp_path_factory, numbers, limit):
    pair = tmp_path_factory.getbasetemp() / "lazy pair"
    arrow, packed = (Cask.open(pair / name) for name in ("arrow", "packed")) if pair.exists() else make_pair(pair)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy_shard, "DECODED", DecodedBlocks(limit))
        one, other = packed.collate(numbers), arrow.collate(numbers)
    assert np.array_equal(one.token_ids_L, other.token_ids_L)
    assert np.array_equal(one.records.head_logprobs_H, other.records.head_logprobs_H)
    assert np.array_equal(one.records.tail_ids_N, other.records.tail_ids_N)
    assert np.array_equal(one.position_offsets_B1, other.position_offsets_B1)


def test_of_a_large_shard_a_batch_decodes_its_documents_once_and_no_others(tmp_path, decoded, decodes, monkeypatch):
    monkeypatch.setattr(lazy_shard, "SMALL_SHARE", 10**9)
    _, packed = make_pair(tmp_path)
    packed.collate([0, 2, 2, 6, 0])
    assert decodes == [2, 1]
    packed.collate([0, 2, 6, 7])
    assert decodes == [2, 1, 1]
    assert len(decoded) == 3


def test_a_small_shard_is_decoded_as_a_whole_once(tmp_path, decoded, decodes):
    _, packed = make_pair(tmp_path)
    packed.collate([0, 2, 2, 6, 0])
    packed.collate([1, 7])
    packed.read(3)
    assert decodes == [len(LENGTHS)] * 2


def test_columns_are_decoded_once_and_let_go_of(tmp_path, decoded, decodes):
    arrow, packed = make_pair(tmp_path)
    shard = packed.shard(0)
    assert isinstance(shard, LazyShard)
    for name, array in arrow.shard(0).columns.arrays.items():
        assert np.array_equal(np.asarray(shard.columns.arrays[name]), np.asarray(array))
    assert decodes == [len(LENGTHS)]
    packed.read(0)
    assert decodes == [len(LENGTHS)], "what was decoded as a whole is read from there"
    decoded.max_bytes = 0
    packed.read(len(LENGTHS))
    assert len(decoded) == 1
    assert shard._blocks == {}
    again, expected = (np.asarray(each.columns.arrays["token_ids"]) for each in (shard, arrow.shard(0)))
    assert np.array_equal(again, expected)


def test_what_was_decoded_keeps_no_cask_alive(tmp_path, decoded):
    _, packed = make_pair(tmp_path)
    packed.read(0)
    [block] = decoded._blocks.values()
    assert block.owner() is not None
    del packed
    gc.collect()
    assert block.owner() is None
    decoded.max_bytes = 0
    Cask.open(tmp_path / "packed").read(3)
    assert len(decoded) == 1
    decoded.clear()
    assert (len(decoded), decoded._bytes) == (0, 0)


@pytest.mark.parametrize("small_share", [lazy_shard.SMALL_SHARE, 10**9])
def test_bits_that_are_no_records_name_their_document_and_spare_the_others(tmp_path, decoded, small_share, monkeypatch):
    monkeypatch.setattr(lazy_shard, "SMALL_SHARE", small_share)
    arrow, packed = make_pair(tmp_path)
    path = shard_path(packed.path, packed.entries[0])
    shard = packed.shard(0)
    assert isinstance(shard, LazyShard)
    start, stop = shard._file.packed.word_offsets_D1[2:4]
    needle = shard._file.packed.words_W[start:stop].tobytes()
    content = bytearray(path.read_bytes())
    at = content.index(needle)
    content[at : at + len(needle)] = bytes(255 for _ in needle)
    path.unlink()
    path.write_bytes(content)
    damaged = Cask.open(packed.path)
    for number in (0, 1, 3, 4, 7):
        assert_same(damaged.read(number), arrow.read(number))
    with pytest.raises(CaskCorruptionError, match=rf"document 2 \({arrow.read(2).id.hex()[:16]}\)"):
        damaged.read(2)
    with pytest.raises(CaskCorruptionError, match="document 2 "):
        damaged.collate([0, 2])
    with pytest.raises(CaskCorruptionError, match="document 2 "):
        _ = damaged.shard(0).columns


def test_a_wrong_checksum_is_told_on_first_touch(tmp_path, decoded):
    _, packed = make_pair(tmp_path)
    shard = packed.shard(1)
    assert isinstance(shard, LazyShard)
    beside = shard._file.beside
    wrong = replace(beside, checksums=beside.checksums + np.uint64(1))
    other = LazyShard(shard.path, shard.entry, shard.layout, replace(shard._file, beside=wrong))
    for read in (other.read, other.verify, lambda row: other.append_window(row, None, None, None, [], [])):
        with pytest.raises(CaskCorruptionError, match=r"document 4 .*stored checksum"):
            read(4)


def test_rows_that_are_not_there(tmp_path):
    _, packed = make_pair(tmp_path)
    for row in (-1, len(LENGTHS)):
        with pytest.raises(IndexError, match=f"document {row} of {len(LENGTHS)}"):
            packed.shard(0).read(row)
    with pytest.raises(IndexError, match=r"window \[3, 9\) of document 3"):
        packed.shard(0).read_window(3, 3, 9)


def test_threads_and_copies_of_the_cask(tmp_path, decoded):
    arrow, packed = make_pair(tmp_path)
    decoded.max_bytes = 20_000
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            mine = packed if seed % 2 else pickle.loads(pickle.dumps(packed))
            for number in np.random.default_rng(seed).integers(0, len(arrow), 60).tolist():
                assert_same(mine.read(number), arrow.read(number))
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
