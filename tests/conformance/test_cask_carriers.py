"""What every carrier of the cask must do; a new one is tested by being in `CARRIERS`."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.format.columns import ShardColumns, assemble
from logitcask_schemas.cask.format.layout import LEVELS, RecordLayout
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.errors import CaskCorruptionError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.schemas.cask_samples import SPEC, VOCABS, make_documents, make_teacher, specs

IDENTITY = "c" * 64
every_carrier = pytest.mark.parametrize("carrier", CARRIERS.values(), ids=list(CARRIERS))


def layout_of(vocab_size: int, spec: CaptureSpec) -> RecordLayout:
    return RecordLayout.of(CaskManifest(teacher=make_teacher(vocab_size), capture=spec, created_by="", created_at=""))


def columns_of(
    lengths: list[int], seed: int, vocab_size: int, spec: CaptureSpec, tails: bool = True, extents: bool = False
) -> ShardColumns:
    documents = make_documents(lengths, seed, vocab_size=vocab_size, spec=spec, tails=tails, extents=extents)
    return assemble(documents, [document.id for document in documents], layout_of(vocab_size, spec))


def written(carrier: Carrier, columns: ShardColumns, layout: RecordLayout) -> bytes:
    sink = io.BytesIO()
    carrier.write(columns, layout, IDENTITY, sink)
    return sink.getvalue()


def assert_equal(found: ShardColumns, expected: ShardColumns) -> None:
    np.testing.assert_array_equal(found.document_ids, expected.document_ids)
    np.testing.assert_array_equal(found.checksums, expected.checksums)
    for level in LEVELS:
        assert found.offsets[level].dtype == np.int64
        np.testing.assert_array_equal(found.offsets[level], expected.offsets[level])
    assert found.lists.names == expected.lists.names
    for mine, theirs in zip(found.lists, expected.lists, strict=True):
        assert [mine.offsets.dtype, mine.values.dtype] == [np.dtype(np.int64), np.dtype(np.uint32)]
        np.testing.assert_array_equal(mine.offsets, theirs.offsets)
        np.testing.assert_array_equal(mine.values, theirs.values)
    assert list(found.arrays) == list(expected.arrays)
    for name, array in expected.arrays.items():
        mine = found.arrays[name][0 : len(found.arrays[name])]
        assert mine.dtype == array.dtype, name
        assert mine.shape == array[0 : len(array)].shape, name
        assert mine.tobytes() == array[0 : len(array)].tobytes(), name


@every_carrier
@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    vocab_size=st.sampled_from(VOCABS),
    spec=specs(),
    tails=st.booleans(),
    extents=st.booleans(),
)
def test_round_trip_is_byte_exact(
    carrier: Carrier, lengths: list[int], seed: int, vocab_size: int, spec: CaptureSpec, tails: bool, extents: bool
) -> None:
    columns, layout = columns_of(lengths, seed, vocab_size, spec, tails, extents), layout_of(vocab_size, spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"shard{carrier.suffix}"
        path.write_bytes(written(carrier, columns, layout))
        assert_equal(carrier.open(path, layout, IDENTITY), columns)


@every_carrier
def test_equal_columns_give_equal_files(carrier: Carrier) -> None:
    layout = layout_of(300, SPEC)
    one, other = columns_of([5, 9], 1, 300, SPEC), columns_of([5, 9], 1, 300, SPEC)
    assert written(carrier, one, layout) == written(carrier, other, layout)
    assert written(carrier, one, layout) != written(carrier, columns_of([5, 9], 2, 300, SPEC), layout)


@every_carrier
def test_a_shard_of_another_identity_is_foreign(carrier: Carrier, tmp_path: Path) -> None:
    layout = layout_of(300, SPEC)
    path = tmp_path / f"shard{carrier.suffix}"
    path.write_bytes(written(carrier, columns_of([5, 9], 1, 300, SPEC), layout))
    with pytest.raises(CaskCorruptionError, match="foreign"):
        carrier.open(path, layout, "d" * 64)


@every_carrier
@pytest.mark.parametrize(
    ("vocab_size", "spec"),
    [(65_537, SPEC), (300, CaptureSpec(logprob_codec="f32")), (300, CaptureSpec(temperatures=(2.0,)))],
)
def test_a_shard_of_another_layout_is_refused(
    carrier: Carrier, tmp_path: Path, vocab_size: int, spec: CaptureSpec
) -> None:
    path = tmp_path / f"shard{carrier.suffix}"
    path.write_bytes(written(carrier, columns_of([5, 9], 1, vocab_size, spec), layout_of(vocab_size, spec)))
    with pytest.raises(CaskCorruptionError, match="columns"):
        carrier.open(path, layout_of(300, SPEC), IDENTITY)


@every_carrier
@settings(max_examples=75, deadline=None)
@given(data=st.data())
def test_damaged_files_are_errors_or_other_columns_never_crashes(carrier: Carrier, data: st.DataObject) -> None:
    """Cut, overwritten and shuffled files; what still opens is for the checksums to judge."""
    layout = layout_of(300, SPEC)
    content = bytearray(written(carrier, columns_of([5, 9], 1, 300, SPEC), layout))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        noise = data.draw(st.binary(max_size=16) | st.just(b"\xff" * 8) | st.just(b"\0" * 8))
        content[at : at + len(noise)] = noise
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"shard{carrier.suffix}"
        path.write_bytes(bytes(content))
        found = open_or_error(carrier, path, layout)
        if isinstance(found, ShardColumns):
            for name, array in found.arrays.items():
                assert len(array[0 : len(array)]) == len(array), name


@every_carrier
@pytest.mark.parametrize("name", [b"entropy", b"logitcask.identity"])
def test_damaged_names_are_errors(carrier: Carrier, tmp_path: Path, name: bytes) -> None:
    """Not UTF-8 any more, everywhere the name stands."""
    layout = layout_of(300, SPEC)
    content = written(carrier, columns_of([5, 9], 1, 300, SPEC), layout)
    path = tmp_path / f"shard{carrier.suffix}"
    path.write_bytes(content.replace(name, b"\xa9" + name[1:]))
    with pytest.raises(CaskCorruptionError, match=path.name):
        carrier.open(path, layout, IDENTITY)


def open_or_error(carrier: Carrier, path: Path, layout: RecordLayout) -> ShardColumns | CaskCorruptionError:
    try:
        return carrier.open(path, layout, IDENTITY)
    except CaskCorruptionError as error:
        assert str(path) in str(error)  # noqa: PT017 - both outcomes are allowed, each with its own demand
        return error
