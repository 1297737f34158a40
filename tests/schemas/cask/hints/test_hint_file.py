"""The file of hints beside a shard: what goes in comes out, for exactly the positions asked for, or it says why."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.format.manifest import entry_bytes, parse_entry
from logitcask_schemas.cask.format.shard_entry import HintsFile
from logitcask_schemas.errors import CaskCorruptionError, CaskNotFoundError, HintsDroppedError, InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.schemas.cask_samples import assert_same, make_documents, make_teacher, unlisted
from tests.support.schemas.hint_samples import (
    assert_same_rows,
    cask_with_hints,
    documents_with_hints,
    with_hints,
)

SPEC = HintSpec(layers=(1, 3), codec="i8")


def specs() -> st.SearchStrategy[HintSpec]:
    return st.builds(
        HintSpec,
        layers=st.sampled_from([(0,), (1, 3), (2, 5, 9)]),
        codec=st.sampled_from(["f16", "i8", "proj:5"]),
        positions=st.sampled_from(["all", "last"]),
    )


@given(
    specs(),
    st.lists(st.integers(2, 30), min_size=1, max_size=5, unique=True),
    st.sampled_from(sorted(CARRIERS.keys() - {"packed"})),
    st.data(),
)
@settings(max_examples=30)
def test_round_trip_of_documents_and_windows(
    tmp_path_factory: pytest.TempPathFactory, spec: HintSpec, lengths: list[int], carrier: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cask") / "cask"
    documents = {document.id: document for document in documents_with_hints(lengths, 1, spec)}
    capture = CaptureSpec(tau=0.05, hints=spec)
    with CaskWriter.create(path, teacher=make_teacher(), capture=capture, version=2, carrier=carrier) as writer:
        writer.publish(list(documents.values()))
    cask = pickle.loads(pickle.dumps(Cask.open(path)))
    assert cask.has_hints
    assert unlisted(cask) == []
    for number in range(len(cask)):
        document = cask.read(number)
        expected = documents[document.id]
        assert_same(document, replace(expected, hints=None))
        assert expected.hints is not None
        assert_same_rows(cask.hints(number), expected.hints)
        stop = data.draw(st.integers(1, len(document.token_ids_L) - 1))
        start = data.draw(st.integers(0, stop - 1))
        window = cask.hints(number, start, stop)
        if spec.positions == "last":
            assert_same_rows(window, expected.hints)
        else:
            rows = [
                row for row, at in enumerate(expected.extent.positions(len(expected.token_ids_L))) if start <= at < stop
            ]
            assert_same_rows(window, expected.hints.slice(slice(rows[0], rows[-1] + 1) if rows else slice(0, 0)))


def test_a_cask_without_hints_has_no_file_and_the_same_shards(tmp_path: Path) -> None:
    documents = documents_with_hints([5, 9], 0, SPEC)
    bare = [replace(document, hints=None) for document in documents]
    with CaskWriter.create(
        tmp_path / "bare", teacher=make_teacher(), capture=CaptureSpec(tau=0.05), version=2
    ) as writer:
        without = writer.publish(bare)
    cask = Cask.open(cask_with_hints(tmp_path / "cask", SPEC, [[5, 9]]))
    assert without is not None
    assert "hints" not in json.loads((tmp_path / "bare/shards" / f"{without.name}.json").read_text())
    assert not Cask.open(tmp_path / "bare").has_hints
    assert without.bytes == cask.entries[0].bytes
    with pytest.raises(HintsDroppedError, match="captured without hints"):
        Cask.open(tmp_path / "bare").hints(0)


def test_training_without_hints_never_opens_their_file(tmp_path: Path) -> None:
    cask = Cask.open(cask_with_hints(tmp_path / "cask", SPEC, [[5, 9]]))
    (file,) = cask.path.rglob("*.hints.arrow")
    file.unlink()
    assert cask.collate([0, 1]).token_ids_L.shape == (14,)
    assert cask.has_hints  # as its entries say
    with pytest.raises(CaskNotFoundError, match=r"hints of shard .* missing.*cask repair"):
        cask.hints(0)


@pytest.mark.parametrize("window", [(0, 0), (3, 2), (-1, 2), (0, 99)])
def test_windows_outside_the_document_are_refused(tmp_path: Path, window: tuple[int, int]) -> None:
    cask = Cask.open(cask_with_hints(tmp_path / "cask", SPEC, [[5, 9]]))
    with pytest.raises(IndexError, match="positions"):
        cask.hints(0, *window)
    with pytest.raises(IndexError):
        cask.hints(2)


def test_documents_must_have_hints_exactly_where_the_spec_has(tmp_path: Path) -> None:
    plain = make_documents([5], 1)
    with CaskWriter.create(
        tmp_path / "with", teacher=make_teacher(), capture=CaptureSpec(tau=0.05, hints=SPEC)
    ) as writer:
        with pytest.raises(InvalidRecordError, match="with hints, this document is without"):
            writer.publish(plain)
        with pytest.raises(InvalidRecordError, match="codes"):
            writer.publish([with_hints(plain[0], HintSpec(layers=(1,), codec="i8"))])
        first, second = make_documents([5, 6], 1)
        two_widths = [with_hints(first, SPEC), with_hints(second, SPEC, width=32)]
        with pytest.raises(InvalidRecordError, match=r"one width.*24, 32"):
            writer.publish(two_widths)
        assert writer.num_documents == 0
    writer = CaskWriter.create(tmp_path / "without", teacher=make_teacher(), capture=CaptureSpec(tau=0.05))
    with pytest.raises(InvalidRecordError, match="without hints, this document is with"):
        writer.publish([with_hints(plain[0], SPEC)])
    assert list(tmp_path.rglob("*.arrow")) == []


def test_layers_of_a_cask_are_resolved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ascending"):
        CaskWriter.create(tmp_path / "cask", teacher=make_teacher(), capture=CaptureSpec(hints=HintSpec(layers=(-1,))))


@pytest.mark.parametrize("hints", [{}, {"bytes": 0, "sha256": "0" * 64}, {"bytes": 1}, {"bytes": 1, "sha256": "x"}])
def test_what_describes_no_file_is_damage(tmp_path: Path, hints: dict[str, Any]) -> None:
    cask_with_hints(tmp_path / "cask", SPEC, [[5]])
    (path,) = (tmp_path / "cask/shards").glob("*.json")
    entry = parse_entry(path.read_bytes(), where=path)
    unchecked = entry.model_copy(update={"hints": HintsFile.model_construct(**hints)})
    with pytest.raises(CaskCorruptionError, match="hints"):
        parse_entry(entry_bytes(unchecked), where=path)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@given(st.integers(0, 2**20))
@settings(max_examples=60)
def test_a_flipped_bit_never_gives_other_hints(tmp_path_factory: pytest.TempPathFactory, at: int) -> None:
    path = cask_with_hints(tmp_path_factory.mktemp("cask") / "cask", SPEC, [[5, 9]])
    before = [Cask.open(path).hints(number) for number in range(2)]
    expected = [{name: array.copy() for name, array in rows.arrays.items()} for rows in before]
    (file,) = path.rglob("*.hints.arrow")
    content = file.read_bytes()
    # Another file, as the old one stays mapped.
    file.unlink()
    file.write_bytes(flipped(content, at % len(content)))
    cask = Cask.open(path)
    for number in range(2):
        try:
            arrays = cask.hints(number).arrays
        except CaskCorruptionError:
            continue
        for name, array in expected[number].items():
            assert np.array_equal(arrays[name], array), name


def test_a_file_that_is_opened_again_is_proved_again(tmp_path: Path) -> None:
    """As the records of a shard are: a copy that was fetched anew, or mapped anew, is other bytes."""
    cask = Cask.open(cask_with_hints(tmp_path / "cask", SPEC, [[5, 9]]))
    codes = cask.hints(0).codes_RKW.tobytes()
    (file,) = tmp_path.rglob("*.hints.arrow")
    content = bytearray(file.read_bytes())
    content[content.index(codes)] ^= 1
    file.unlink()
    file.write_bytes(content)
    assert cask.hints(0).codes_RKW.tobytes() == codes, "still the file that was mapped"
    cask.forget(0)
    with pytest.raises(CaskCorruptionError, match="checksum"):
        cask.hints(0)


def test_another_shards_hints_are_noticed(tmp_path: Path) -> None:
    path = cask_with_hints(tmp_path / "cask", SPEC, [[5, 9], [5, 9]])
    first, second = sorted(path.rglob("*.hints.arrow"))
    contents = first.read_bytes(), second.read_bytes()
    assert len(contents[0]) == len(contents[1])
    first.write_bytes(contents[1])
    with pytest.raises(CaskCorruptionError, match="another shard's hints"):
        Cask.open(path).hints(0)
