"""documents.bin: lengths and ids without opening shards, whatever it knows and however it is damaged."""

import errno
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, DocumentTable, ShardDocuments, write_document_table
from logitcask_schemas.cask.integrity.verify import survey
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError
from tests.support.schemas.cask_samples import SPEC, make_document, make_documents, make_teacher

# Few distinct prefixes, so that ids share their first 8 bytes and the tie has to be broken on the rest.
IDS = st.builds(lambda start, end: bytes([start]) * 8 + bytes([end]) * 24, st.integers(0, 3), st.integers(0, 40))


def create(path: Path) -> CaskWriter:
    return CaskWriter.create(path, teacher=make_teacher(), capture=SPEC)


def opening_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a shard was opened")

    monkeypatch.setattr("logitcask_schemas.cask.reader.open_shard", refuse)
    monkeypatch.setattr("logitcask_schemas.cask.location.open_documents", refuse)
    monkeypatch.setattr("logitcask_schemas.cask.local_home.open_documents", refuse)


@settings(max_examples=60, deadline=None)
@given(shards=st.dictionaries(st.integers(0, 2**128 - 1), st.lists(IDS, max_size=8), max_size=6), probe=IDS)
def test_says_what_was_written(shards: dict[int, list[bytes]], probe: bytes) -> None:
    given_shards = {
        f"{name:032x}": ShardDocuments(
            ids=np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32),
            lengths=np.arange(len(ids), dtype=np.uint32) + 2,
        )
        for name, ids in shards.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        write_document_table(LocalFiles(), Path(folder), given_shards)
        table = DocumentTable.open(Path(folder))
    assert table is not None
    table.verify()
    assert list(table.shard_names()) == sorted(given_shards)
    assert table.covers_exactly(sorted(given_shards))
    everything = [identity for name in sorted(shards) for identity in shards[name]]
    assert table.num_documents == len(everything)
    assert [identity.tobytes() for identity in table.ids] == everything
    for name, documents in given_shards.items():
        assert name in table
        np.testing.assert_array_equal(table.shard(name).ids, documents.ids)
        np.testing.assert_array_equal(table.shard(name).lengths, documents.lengths)
    for identity in [*everything, probe]:
        found = table.find(identity)
        assert (found is None) == (identity not in everything)
        assert found is None or everything[found] == identity


def test_a_closed_cask_needs_no_shard_for_ids_and_lengths(cask_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        Cask.open(cask_path).read(number).id: len(Cask.open(cask_path).read(number).token_ids_L) for number in range(8)
    }
    opening_refused(monkeypatch)
    cask = Cask.open(cask_path)
    lengths, ids = cask.document_lengths(), cask.document_ids()
    assert lengths.dtype == np.int64
    assert {identity.tobytes(): int(length) for identity, length in zip(ids, lengths, strict=True)} == expected
    assert [cask.find(identity.tobytes()) for identity in ids] == list(range(8))
    assert cask.find(bytes(32)) is None
    assert create(cask_path).num_documents == 8
    assert all(create(cask_path).has(identity) for identity in expected)


def test_loose_shards_count_as_well(cask_path: Path) -> None:
    known = Cask.open(cask_path).document_ids().copy()
    writer = create(cask_path)
    added = make_documents([5, 6], 7)
    writer.publish(added)
    cask = Cask.open(cask_path)
    assert len(cask.document_lengths()) == len(cask.document_ids()) == 10
    for identity in [*(row.tobytes() for row in known), *(document.id for document in added)]:
        number = cask.find(identity)
        assert number is not None
        assert cask.read(number).id == identity
        assert cask.document_lengths()[number] == len(cask.read(number).token_ids_L)
        assert writer.has(identity)
    writer.close()
    assert len(Cask.open(cask_path).document_lengths()) == 10
    assert create(cask_path).publish(added) is None


def test_the_table_can_be_deleted(cask_path: Path) -> None:
    table = cask_path / DOCUMENTS_NAME
    content, lengths = table.read_bytes(), Cask.open(cask_path).document_lengths()
    table.unlink()
    np.testing.assert_array_equal(Cask.open(cask_path).document_lengths(), lengths)
    create(cask_path).close()
    assert table.read_bytes() == content


def test_a_table_of_shards_that_are_gone_says_nothing(tmp_path: Path) -> None:
    """Whoever takes a shard away with its entry gives its documents up: they may be stored again."""
    with create(tmp_path) as writer:
        writer.publish([make_document(5, 1)])
        gone = writer.publish([make_document(6, 2)])
    waiting = create(tmp_path)
    assert gone is not None
    (tmp_path / "index.json").unlink()
    for file in (tmp_path / "shards").glob(f"{gone.name}.*"):
        file.unlink()
    cask = Cask.open(tmp_path)
    assert list(cask.document_lengths()) == [5]
    assert cask.find(make_document(6, 2).id) is None
    for writer in (create(tmp_path), waiting):
        assert writer.publish([make_document(5, 1)]) is None
        assert writer.has(make_document(5, 1).id)
        assert not writer.has(make_document(6, 2).id)
    waiting.publish([make_document(6, 2)])
    waiting.close()
    assert sorted(Cask.open(tmp_path).document_lengths()) == [5, 6]


def test_a_writer_misses_a_lost_shard_although_the_table_knows_it(cask_path: Path) -> None:
    next((cask_path / "shards").glob("*.arrow")).unlink()
    with pytest.raises(CaskNotFoundError, match=r"is missing.*cask repair"):
        create(cask_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("table")
    with create(path) as writer:
        writer.publish(make_documents([3, 9], 1))
        writer.publish(make_documents([4], 2))
    return (path / DOCUMENTS_NAME).read_bytes()


def used(content: bytes) -> tuple[list[int], list[bytes], list[int | None]]:
    """Everything a table gives."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / DOCUMENTS_NAME).write_bytes(content)
        table = DocumentTable(Path(folder) / DOCUMENTS_NAME)
        ids = [row.tobytes() for row in table.ids]
        return table.lengths.tolist(), ids, [table.find(identity) for identity in ids]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_found_before_anything_is_believed(sound: bytes, data: st.DataObject) -> None:
    content = bytearray(sound)
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "nonsense"]))
    if kind == "flip":
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "extend":
        content += data.draw(st.binary(min_size=1, max_size=99))
    else:
        content = bytearray(b"LCDOCS01"[: data.draw(st.integers(0, 8))] + data.draw(st.binary(max_size=300)))
    with pytest.raises(CaskCorruptionError, match=r"documents\.bin.*delete it"):
        used(bytes(content))


def test_every_bit_is_covered_or_padding(sound: bytes) -> None:
    """Zero padding between sections is the only part that no checksum covers, and nobody reads it."""
    expected = used(sound)
    uncovered = 0
    for bit in range(0, len(sound) * 8, 5):
        content = bytearray(sound)
        content[bit // 8] ^= 1 << bit % 8
        try:
            found = used(bytes(content))
        except CaskError:
            continue
        assert found == expected
        uncovered += 1
    assert uncovered == 0


class BadSector(io.FileIO):
    """A file whose disk gives back its beginning and no more."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


def test_what_is_doubted_is_read_before_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector is an error where it is read; under a mapping it would end the process."""
    with create(tmp_path) as writer:
        writer.publish(make_documents([9, 5], 1))

    def mapped(*_: object, **__: object) -> None:
        raise AssertionError("the table was mapped")

    monkeypatch.setattr("logitcask_schemas.cask.documents.open_regular", BadSector)
    monkeypatch.setattr("logitcask_schemas.cask.documents.mmap.mmap", mapped)
    found = survey(LocalFolder(folder=tmp_path))
    assert found.table is None
    assert found.damaged_files == [tmp_path / DOCUMENTS_NAME]
    assert "Input/output error" in found.problems[0]
    with pytest.raises(AssertionError, match="was mapped"):  # readers, who do not doubt it
        DocumentTable.open(tmp_path)


def test_shards_that_are_gone_are_missed_when_the_rest_was_folded(tmp_path: Path) -> None:
    with create(tmp_path) as writer:
        writer.publish([make_document(5, 1)])
        gone = writer.publish([make_document(6, 2)])
    waiting = create(tmp_path)
    assert gone is not None
    (tmp_path / "index.json").unlink()
    for file in (tmp_path / "shards").glob(f"{gone.name}.*"):
        file.unlink()
    with create(tmp_path) as other:
        other.publish([make_document(7, 3)])
    assert (tmp_path / "index.json").exists()
    assert waiting.publish([make_document(7, 3)]) is None
    assert not waiting.has(make_document(6, 2).id)
    waiting.publish([make_document(6, 2)])
    waiting.close()
    assert sorted(Cask.open(tmp_path).document_lengths()) == [5, 6, 7]
