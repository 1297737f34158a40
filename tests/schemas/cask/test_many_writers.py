"""Writers beside each other: each looks at what is new, and at everything where nobody can tell what is new."""

import errno
from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask, CaskWriter, directory, local_home, stored_shards
from logitcask_schemas.cask.documents import DOCUMENTS_NAME
from logitcask_schemas.cask.format.columns import assemble
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.errors import CaskWriteError
from tests.support.schemas.cask_samples import SPEC, make_document, make_teacher
from tests.support.schemas.crash_model import FailingFiles


def create(path: Path, **options: object) -> CaskWriter:
    return CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, **options)  # type: ignore[arg-type]


def document(seed: int):
    return make_document(4, seed)


@pytest.fixture
def listings(monkeypatch):
    """Times that a writer listed the whole cask."""
    counted, listing = [], directory.read_listing

    def read_listing(*arguments):
        counted.append(1)
        return listing(*arguments)

    monkeypatch.setattr(local_home, "read_listing", read_listing)
    return counted


def test_writers_by_turns_read_only_what_is_new(tmp_path: Path, listings) -> None:
    writers = [create(tmp_path) for _ in range(3)]
    for number in range(30):
        assert writers[number % 3].publish([document(number)]) is not None
    assert len(listings) == 3, "one each, when they were made"
    for number in range(30):
        for writer in writers:
            assert writer.publish([document(number)]) is None, "whoever stored it"
    assert [writer.num_documents for writer in writers] == [30] * 3
    assert len(listings) == 3
    assert len(Cask.open(tmp_path)) == 30


def test_a_writer_follows_what_others_fold_into_the_table(tmp_path: Path, monkeypatch, listings) -> None:
    monkeypatch.setattr(stored_shards, "_MIN_LOOSE", 4)
    one, other = create(tmp_path), create(tmp_path)
    for number in range(40):
        one.publish([document(number)])
    one.close()
    assert other.publish([document(7)]) is None
    assert not other._stored._beyond_table, "the table has them all"
    assert not other._stored._loose
    assert len(other._stored._indexed) == other.num_documents == 40
    other.publish([document(40)])
    assert one.publish([document(40)]) is None
    other.close()
    (tmp_path / DOCUMENTS_NAME).unlink()
    assert other.publish([document(3)]) is None, "a table may be deleted at any time"
    assert one.publish([document(41)]) is not None
    assert len(Cask.open(tmp_path)) == 42
    assert len(listings) == 2


def test_after_a_holder_that_tells_nothing_writers_look_at_everything(tmp_path: Path, listings) -> None:
    one, other = create(tmp_path), create(tmp_path)
    one.publish([document(1)])
    other.publish([document(2)])
    with writers_lock(tmp_path, holder="merge", timeout_seconds=1):
        pass
    one.publish([document(3)])
    other.publish([document(4)])
    assert len(listings) == 4
    one.publish([document(5)])
    other.publish([document(6)])
    assert len(listings) == 4, "from then on they tell each other again"


def test_a_repair_is_noticed(tmp_path: Path) -> None:
    one, other = create(tmp_path), create(tmp_path)
    kept, broken = one.publish([document(1)]), one.publish([document(2)])
    other.publish([document(3)])
    assert kept is not None
    assert broken is not None
    (tmp_path / "shards" / f"{broken.name}.arrow").write_bytes(b"")
    repair_cask(tmp_path)
    assert other.publish([document(2)]) is not None, "it is not stored any more"
    assert one.publish([document(2), document(1)]) is None
    assert len(Cask.open(tmp_path)) == 3


def test_a_writer_that_dies_before_it_tells_is_noticed(tmp_path: Path) -> None:
    """Its shard is published, its log stays open."""
    one, other = create(tmp_path), create(tmp_path)
    other.publish([document(1)])
    late = document(2)

    def publish_and_die():
        with one._refreshed():
            one._store(assemble([late], [late.id], one._layout))
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        publish_and_die()
    assert other.publish([late]) is None
    assert len(Cask.open(tmp_path)) == 2


def test_a_failed_publication_is_noticed(tmp_path: Path) -> None:
    files = FailingFiles(10**6, errno.EIO)
    one, other = create(tmp_path, files=files), create(tmp_path)
    one.publish([document(1)])
    files.remaining = 2
    with pytest.raises(CaskWriteError):
        one.publish([document(2)])
    assert other.publish([document(2), document(1)]) is not None
    assert len(Cask.open(tmp_path)) == 2
