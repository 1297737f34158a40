"""Batches of documents and windows equal the documents and windows read one by one, in every layout and carrier."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.batches import CollatedRecords
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.errors import CaskCorruptionError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.record_arrays import record_arrays
from tests.support.schemas.cask_samples import VOCABS, columns_of, make_documents, make_teacher, specs


def offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def assert_end_to_end(collated: CollatedRecords, expected: list[DocumentRecords], tokens=None) -> None:
    """`tokens`: of each window where they are more than its positions need."""
    tokens = [document.token_ids_L for document in expected] if tokens is None else tokens
    np.testing.assert_array_equal(collated.token_offsets_B1, offsets([len(document) for document in tokens]))
    np.testing.assert_array_equal(
        collated.position_offsets_B1, offsets([document.records.num_positions for document in expected])
    )
    assert collated.num_windows == len(expected)
    columns = {"token_ids_L": collated.token_ids_L, **record_arrays(collated.records)}
    assert columns.keys() == columns_of(expected[0]).keys()
    for name, column in columns.items():
        joined = np.concatenate(
            [columns_of(document)[name] for document in expected] if name != "token_ids_L" else tokens
        )
        assert column.dtype == joined.dtype, name
        assert column.shape == joined.shape, name
        assert column.tobytes() == joined.tobytes(), name
        assert column.flags.writeable, name


@settings(max_examples=20, deadline=None)
@given(data=st.data(), spec=specs(), vocab=st.sampled_from(VOCABS), carrier=st.sampled_from(sorted(CARRIERS)))
def test_a_batch_is_its_windows_end_to_end(data: st.DataObject, spec: CaptureSpec, vocab: int, carrier: str) -> None:
    documents = make_documents([2, 60, 9, 33], 5, vocab_size=vocab, spec=spec)
    with tempfile.TemporaryDirectory() as folder:
        with CaskWriter.create(Path(folder), teacher=make_teacher(vocab), capture=spec, carrier=carrier) as writer:
            writer.publish(documents[:2])
            writer.publish(documents[2:])
        cask = Cask.open(Path(folder))
        numbers = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
        assert_end_to_end(cask.collate(numbers), [cask.read(number) for number in numbers])
        positions = [cask.read(number).records.num_positions for number in numbers]
        starts = [data.draw(st.integers(0, length - 1)) for length in positions]
        stops = [data.draw(st.integers(start + 1, length)) for start, length in zip(starts, positions, strict=True)]
        windows = [cask.read_window(*window) for window in zip(numbers, starts, stops, strict=True)]
        assert_end_to_end(cask.collate(np.array(numbers), np.array(starts), np.array(stops)), windows)
        firsts = [data.draw(st.integers(0, start)) for start in starts]
        tokens = [
            cask.read(number).token_ids_L[first : stop + 1]
            for number, first, stop in zip(numbers, firsts, stops, strict=True)
        ]
        assert_end_to_end(cask.collate(numbers, starts, stops, token_starts=firsts), windows, tokens)


@pytest.mark.parametrize(
    "spec", [CaptureSpec(), CaptureSpec(logprob_codec="u8", tail_logprobs=True, temperatures=(2,))]
)
def test_no_windows_give_empty_columns_of_the_stored_dtypes(tmp_path: Path, spec: CaptureSpec) -> None:
    with CaskWriter.create(tmp_path, teacher=make_teacher(65_537), capture=spec) as writer:
        writer.publish(make_documents([5], 1, vocab_size=65_537, spec=spec))
    cask = Cask.open(tmp_path)
    nothing, something = cask.collate([]), cask.collate([0])
    assert nothing.num_windows == len(nothing.token_ids_L) == nothing.records.num_positions == 0
    assert nothing.token_offsets_B1.tolist() == nothing.position_offsets_B1.tolist() == [0]
    assert nothing.token_ids_L.dtype == something.token_ids_L.dtype
    empty = record_arrays(nothing.records)
    for name, array in record_arrays(something.records).items():
        column = empty.pop(name)
        assert (column.dtype, column.shape) == (array.dtype, (0, *array.shape[1:]))
    assert not empty


def test_what_is_no_window_is_refused(cask_path: Path) -> None:
    cask = Cask.open(cask_path)
    length = int(cask.document_lengths()[0])
    for starts, stops in (([0], [0]), ([-1], [1]), ([0], [length]), ([length], [length + 1])):
        with pytest.raises(IndexError, match="window"):
            cask.collate([0], starts, stops)
    for first in (-1, 2):
        with pytest.raises(IndexError, match=f"its tokens from {first} on"):
            cask.collate([0], [1], [2], token_starts=[first])
    with pytest.raises(IndexError, match="document 99"):
        cask.collate([99])
    with pytest.raises(ValueError, match="zip"):
        cask.collate([0, 1], [0])


def test_a_damaged_document_does_not_enter_a_batch(cask_path: Path) -> None:
    cask = Cask.open(cask_path)
    shard = cask.shard(0).path
    content = bytearray(shard.read_bytes())
    content[content.find(cask.read(0).records.head_ids_H.tobytes())] ^= 1
    shard.unlink()
    shard.write_bytes(bytes(content))
    fresh = Cask.open(cask_path)
    with pytest.raises(CaskCorruptionError, match="stored checksum"):
        fresh.collate([1, 0])
