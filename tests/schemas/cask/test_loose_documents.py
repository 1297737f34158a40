"""Ids and lengths taken from shards directly: as the whole shard says, refused where it is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask import opening as opening_module
from logitcask_schemas.cask.opening import open_documents, open_shard
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher


def make_loose(path: Path, carrier: str = "arrow", vocab_size: int = 49_152) -> Cask:
    """Two shards that no index and no table lists."""
    writer = CaskWriter.create(path, teacher=make_teacher(vocab_size), capture=SPEC, carrier=carrier)
    writer.publish(make_documents([2, 3, 40, 7], 1, vocab_size=vocab_size))
    writer.publish(make_documents([5], 2, vocab_size=vocab_size))
    assert not (path / "documents.bin").exists()
    return Cask.open(path)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Cask:
    return make_loose(tmp_path_factory.mktemp("loose") / "cask")


@pytest.mark.parametrize("small", [0, 1 << 17])
@pytest.mark.parametrize("carrier", ["arrow", "zarr", "parquet"])
@pytest.mark.parametrize("vocab_size", [300, 262_144])
def test_they_are_what_the_whole_shard_says(
    tmp_path: Path, carrier: str, vocab_size: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening_module, "_SMALL", small)
    cask = make_loose(tmp_path / "cask", carrier, vocab_size)
    for number, entry in enumerate(cask.entries):
        found, whole = open_documents(cask.path, entry, cask.layout), cask.shard(number).documents
        assert np.array_equal(found.ids, whole.ids)
        assert np.array_equal(found.lengths, whole.lengths)
        assert found.lengths.dtype == whole.lengths.dtype == np.int64
        assert found.ids.base is None, "a view would keep the file mapped"


def test_readers_and_writers_open_no_shard_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cask = make_loose(tmp_path / "cask")
    documents = [*make_documents([2, 3, 40, 7], 1), *make_documents([5], 2)]
    monkeypatch.setattr(opening_module, "open_columns", lambda *_: pytest.fail("opened a whole shard"))
    assert sorted(cask.document_lengths()) == [2, 3, 5, 7, 40]
    for document in documents:
        index = cask.find(document.id)
        assert index is not None
        assert cask.document_lengths()[index] == len(document.token_ids_L)
    writer = CaskWriter.create(cask.path, teacher=make_teacher(), capture=SPEC)
    assert all(writer.has(document.id) for document in documents)
    assert writer.publish(documents) is None


@settings(max_examples=200)
@given(data=st.data())
def test_what_they_refuse_the_whole_shard_refuses(loose: Cask, data: st.DataObject) -> None:
    """Of any damage: never an error that opening the shard would not give, and the same one where both look."""
    entry = loose.entries[0]
    path = loose.path / "shards" / f"{entry.name}.arrow"
    original = path.read_bytes()
    at, flip = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(1, 255))
    path.unlink()
    path.write_bytes(original[:at] + bytes([original[at] ^ flip]) + original[at + 1 :])
    try:
        outcomes: list[str | None] = []
        for open_one in (open_documents, open_shard):
            try:
                open_one(loose.path, entry, loose.layout)
                outcomes.append(None)
            except CaskError as error:
                outcomes.append(str(error))
        assert outcomes[0] in (None, outcomes[1])
    finally:
        path.unlink()
        path.write_bytes(original)


def damaged(cask: Path, change: str) -> None:
    path = sorted((cask / "shards").glob("*.arrow"))[0]
    content = path.read_bytes()
    path.unlink()
    if change == "cut":
        path.write_bytes(content[:-1])
    elif change == "noise":
        path.write_bytes(bytes(len(content)))
    elif change == "folder":
        path.mkdir()


@pytest.mark.parametrize("change", ["missing", "cut", "noise", "folder"])
def test_damage_is_the_error_that_opening_gives(tmp_path: Path, change: str) -> None:
    cask = make_loose(tmp_path / "cask")
    damaged(cask.path, change)
    kind = CaskNotFoundError if change == "missing" else CaskCorruptionError
    with pytest.raises(kind) as fast:
        open_documents(cask.path, cask.entries[0], cask.layout)
    with pytest.raises(kind) as whole:
        open_shard(cask.path, cask.entries[0], cask.layout)
    assert str(fast.value) == str(whole.value)


def test_a_shard_of_other_documents_than_its_entry_says(tmp_path: Path) -> None:
    cask = make_loose(tmp_path / "cask")
    entry = next(entry for entry in cask.entries if entry.documents == 4)
    wrong = entry.model_copy(update={"documents": 3})
    with pytest.raises(CaskCorruptionError, match=r"holds \(4, 52\) documents and tokens; its entry says \(3, 52\)"):
        open_documents(cask.path, wrong, cask.layout)
