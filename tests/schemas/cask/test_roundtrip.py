"""What goes into a cask comes out, bit for bit, in every layout of the record."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.format.columns import join_planes
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import (
    SPEC,
    VOCABS,
    assert_same,
    columns_of,
    make_document,
    make_documents,
    make_teacher,
    specs,
)


@settings(max_examples=60, deadline=None)
@given(
    spec=specs(),
    vocab=st.sampled_from(VOCABS),
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    cut=st.integers(0, 5),
    tails=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_round_trip(spec: CaptureSpec, vocab: int, lengths: list[int], cut: int, tails: bool, seed: int) -> None:
    documents = make_documents(lengths, seed, vocab_size=vocab, spec=spec, tails=tails)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cask"
        with CaskWriter.create(path, teacher=make_teacher(vocab), capture=spec) as writer:
            for batch in (documents[:cut], documents[cut:]):
                writer.publish(batch)
            assert all(writer.has(document.id) for document in documents)
        cask = Cask.open(path)
        distinct = {document.id: document for document in documents}
        assert len(cask) == len(distinct)
        assert cask.num_tokens == sum(len(document.token_ids_L) for document in distinct.values())
        for identity, document in distinct.items():
            number = cask.find(identity)
            assert number is not None
            assert_same(cask.read(number), document)
            assert cask.document_ids()[number].tobytes() == identity
            assert cask.document_lengths()[number] == len(document.token_ids_L)


@pytest.mark.parametrize("vocab", VOCABS)
def test_flat_columns_are_the_documents_end_to_end(tmp_path: Path, vocab: int) -> None:
    spec = CaptureSpec(tail_logprobs=True, temperatures=(2.0, 4.0))
    documents = make_documents([2, 50, 7], 3, vocab_size=vocab, spec=spec)
    CaskWriter.create(tmp_path / "c", teacher=make_teacher(vocab), capture=spec).publish(documents)
    shard = Cask.open(tmp_path / "c").shard(0)
    arrays: Any = shard.columns.arrays
    joined = (
        dict(arrays)
        if vocab <= 1 << 16
        else {
            name: join_planes(array, arrays[f"{name}_high"]) if f"{name}_high" in arrays else array
            for name, array in arrays.items()
            if not name.endswith("_high")
        }
    )
    suffixes = {"token_ids": "_L", **dict.fromkeys(("head_counts", "tail_counts"), "_P")}
    suffixes |= dict.fromkeys(("head_ids", "head_logprobs"), "_H") | dict.fromkeys(("tail_ids", "tail_logprobs"), "_N")
    flat = {name + suffixes.get(name, ""): array for name, array in joined.items()}
    assert flat.keys() == columns_of(documents[0]).keys()
    for name, column in flat.items():
        expected = np.concatenate([columns_of(document)[name] for document in documents])
        np.testing.assert_array_equal(column, expected)
    for offsets, lengths in (
        (shard.token_offsets, [len(document.token_ids_L) for document in documents]),
        (shard.position_offsets, [document.records.num_positions for document in documents]),
        (shard.columns.offsets["head"], [len(document.records.head_ids_H) for document in documents]),
        (shard.columns.offsets["tail"], [len(document.records.tail_ids_N) for document in documents]),
    ):
        assert offsets.dtype == np.int64
        np.testing.assert_array_equal(np.diff(offsets), lengths)


def level_of(name: str) -> str:
    return name[-1] if name[-1].isupper() else name


def stored_name(name: str) -> str:
    return name[:-2] if name[-1].isupper() else name


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_windows_are_slices_of_the_document(data: st.DataObject) -> None:
    vocab = data.draw(st.sampled_from([300, 65_537]))
    spec = CaptureSpec(tail_logprobs=True, temperatures=(2.0,))
    documents = make_documents([40, 25], 5, vocab_size=vocab, spec=spec)
    with tempfile.TemporaryDirectory() as folder:
        CaskWriter.create(Path(folder), teacher=make_teacher(vocab), capture=spec).publish(documents)
        cask = Cask.open(Path(folder))
        number = data.draw(st.integers(0, 1))
        whole = cask.read(number)
        start = data.draw(st.integers(0, whole.records.num_positions - 1))
        stop = data.draw(st.integers(start + 1, whole.records.num_positions))
        window = cask.read_window(number, start, stop)
    heads = np.cumsum(np.concatenate([[0], whole.records.head_counts_P]), dtype=np.int64)
    tails = np.cumsum(np.concatenate([[0], whole.records.tail_counts_P]), dtype=np.int64)
    # Columns of positions have their plain names, others end with the letter of their level.
    cuts = dict.fromkeys(("P", *whole.records.position_columns), slice(start, stop)) | {"L": slice(start, stop + 1)}
    cuts["H"], cuts["N"] = slice(heads[start], heads[stop]), slice(tails[start], tails[stop])
    for name, column in columns_of(whole).items():
        np.testing.assert_array_equal(columns_of(window)[name], column[cuts[level_of(name)]])


def test_columns_are_views_of_the_mapped_file(cask_path: Path) -> None:
    cask = Cask.open(cask_path)
    document = cask.read(0)
    shard = cask.shard(cask.locate(0)[0])
    for name, column in columns_of(document).items():
        assert not column.flags.writeable, name
        assert not column.flags.owndata, name
        assert np.shares_memory(column, shard.columns.arrays[stored_name(name)]), name


def test_columns_start_at_multiples_of_eight_bytes(cask_path: Path) -> None:
    for array in Cask.open(cask_path).shard(0).columns.arrays.values():
        assert isinstance(array, np.ndarray)
        assert array.__array_interface__["data"][0] % 8 == 0


def test_values_are_stored_in_the_codec_of_the_spec(tmp_path: Path) -> None:
    document = make_document(30, 1, spec=CaptureSpec(logprob_codec="f32"))
    CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC).publish([document])
    stored = Cask.open(tmp_path).read(0).records.head_logprobs_H
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, document.records.head_logprobs_H.astype(np.float16))


def test_wide_ids_of_a_small_vocabulary_are_accepted(tmp_path: Path) -> None:
    """An engine may hand over uint32 whatever the vocabulary."""
    document = make_document(30, 1)
    columns = {name: getattr(document.records, name) for name in type(document.records).__dataclass_fields__}
    columns["head_ids_H"] = document.records.head_ids_H.astype(np.uint32)
    wide = DocumentRecords(
        token_ids_L=document.token_ids_L.astype(np.uint32),
        records=type(document.records)(**columns),
        answer_ranges_R2=document.answer_ranges_R2,
    )
    CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC).publish([wide])
    assert_same(Cask.open(tmp_path).read(0), document)


def test_equal_documents_give_equal_files(tmp_path: Path) -> None:
    names = []
    for folder in ("one", "other"):
        entry = CaskWriter.create(tmp_path / folder, teacher=make_teacher(), capture=SPEC).publish(
            make_documents([9, 30], 4)
        )
        assert entry is not None
        names.append(entry)
    assert names[0] == names[1]
    files = [(tmp_path / folder / "shards" / f"{names[0].name}.arrow").read_bytes() for folder in ("one", "other")]
    assert files[0] == files[1]


def test_out_of_range_is_an_index_error(cask_path: Path) -> None:
    cask = Cask.open(cask_path)
    for index in (-1, len(cask)):
        with pytest.raises(IndexError, match="of 8"):
            cask.read(index)
    with pytest.raises(IndexError, match="of 2"):
        cask.shard(2)
    for start, stop in ((0, 0), (-1, 1), (0, 10_000)):
        with pytest.raises(IndexError, match="window"):
            cask.read_window(0, start, stop)


def test_an_empty_cask_opens(tmp_path: Path) -> None:
    writer = CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC)
    assert writer.publish([]) is None
    writer.close()
    cask = Cask.open(tmp_path)
    assert (len(cask), cask.num_tokens, cask.num_bytes) == (0, 0, 0)
    assert cask.document_lengths().shape == (0,)
    assert cask.document_ids().shape == (0, 32)
    assert cask.find(b"\0" * 32) is None
