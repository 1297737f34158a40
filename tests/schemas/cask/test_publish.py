"""Publishing: duplicates, several writers, leftovers, the index, and documents that are refused."""

import errno
import threading
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.integrity.verify import survey, verify_shards
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.errors import (
    CaskError,
    CaskLockedError,
    CaskWriteError,
    IdentityMismatchError,
    InvalidRecordError,
)
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords, Records
from tests.support.schemas.cask_samples import SPEC, assert_same, make_document, make_documents, make_teacher, unlisted
from tests.support.schemas.crash_model import FailingFiles


def create(path: Path, **options: object) -> CaskWriter:
    return CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, **options)  # type: ignore[arg-type]


def changed(document: DocumentRecords, **columns: object) -> DocumentRecords:
    fields = {name: getattr(document.records, name) for name in Records.__dataclass_fields__}
    return DocumentRecords(
        token_ids_L=columns.pop("token_ids_L", document.token_ids_L),  # type: ignore[arg-type]
        records=Records(**(fields | columns)),
        answer_ranges_R2=document.answer_ranges_R2,
    )


def test_duplicates_are_stored_once(tmp_path: Path) -> None:
    one, two, three = make_documents([5, 9, 30], 1)
    writer = create(tmp_path)
    first = writer.publish([one, two, one])
    assert first is not None
    assert first.documents == 2
    second = writer.publish([two, three])
    assert second is not None
    assert second.documents == 1
    assert writer.publish([one, two, three]) is None
    assert create(tmp_path).publish([three]) is None
    assert len(Cask.open(tmp_path)) == writer.num_documents == 3


def test_a_shard_is_announced_before_it_is_one(tmp_path: Path) -> None:
    documents, heard = make_documents([5, 9], 1), list[str]()

    def hear(name: str) -> None:
        assert not (tmp_path / f"shards/{name}.json").exists(), "whoever dies now has published nothing"
        assert len(Cask.open(tmp_path)) == len(heard)
        heard.append(name)

    writer = create(tmp_path)
    entries = [writer.publish([document], announce=hear) for document in documents]
    assert heard == [entry.name for entry in entries if entry is not None]
    assert writer.publish(documents, announce=hear) is None
    assert len(heard) == 2, "nothing was published"


def test_what_cannot_be_announced_is_not_published(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    documents, writer = make_documents([5, 9], 1), create(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        writer.publish(documents, announce=refuse)
    assert list((tmp_path / "shards").iterdir()) == [], "its room is given back"
    assert writer.publish(documents) is not None
    assert len(Cask.open(tmp_path)) == 2


def test_duplicates_can_be_an_error(tmp_path: Path) -> None:
    documents = make_documents([5, 9], 1)
    writer = create(tmp_path)
    writer.publish(documents[:1])
    with pytest.raises(CaskError, match=documents[0].id.hex()[:16]):
        writer.publish(documents, on_duplicate="error")
    assert len(Cask.open(tmp_path)) == 1


def test_writers_see_each_other(tmp_path: Path) -> None:
    one, other = create(tmp_path), create(tmp_path)
    documents = make_documents([5, 9, 12], 1)
    one.publish(documents[:2])
    entry = other.publish(documents)
    assert entry is not None
    assert entry.documents == 1
    assert not one.has(documents[2].id)
    assert one.publish(documents) is None
    assert one.has(documents[2].id)


def publish_many(path: Path, seed: int, results: object) -> None:
    writer = create(path)
    for batch in range(10):
        # Half of each batch is common to all writers, so that they race for it.
        common = make_documents([6, 7], 10_000 + batch)
        own = make_documents([8], seed * 100 + batch)
        writer.publish([*common, *own])
    writer.close()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_concurrent_writers_lose_and_double_nothing(tmp_path: Path, kind: str) -> None:
    make = threading.Thread if kind == "thread" else get_context("spawn").Process
    workers = [make(target=publish_many, args=(tmp_path, seed, None)) for seed in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cask = Cask.open(tmp_path)
    ids = [identity.tobytes() for identity in cask.document_ids()]
    expected = {document.id for batch in range(10) for document in make_documents([6, 7], 10_000 + batch)}
    expected |= {
        document.id for seed in (1, 2, 3) for batch in range(10) for document in make_documents([8], seed * 100 + batch)
    }
    assert len(ids) == len(set(ids))
    assert set(ids) == expected
    assert unlisted(cask) == []
    assert not [problem for report in verify_shards(cask) for problem in report.problems]


def test_a_writer_that_does_not_finish_is_named(tmp_path: Path) -> None:
    create(tmp_path)
    with writers_lock(tmp_path, holder="other", timeout_seconds=1), pytest.raises(CaskLockedError, match="process id"):
        create(tmp_path, lock_timeout_seconds=0.05)
    create(tmp_path, lock_timeout_seconds=0.05)


def test_leftovers_are_swept_and_published_files_stay(cask_path: Path) -> None:
    before = {file.name for file in (cask_path / "shards").iterdir()}
    (cask_path / "shards" / ".tmp-1").write_bytes(b"half a shard")
    (cask_path / "shards" / ("0" * 32 + ".arrow")).write_bytes(b"renamed, but its writer died before the entry")
    (cask_path / ".tmp-2").write_bytes(b"half an index")
    assert len(Cask.open(cask_path)) == 8  # readers ignore them
    create(cask_path)
    assert {file.name for file in (cask_path / "shards").iterdir()} == before
    assert not (cask_path / ".tmp-2").exists()


@pytest.mark.parametrize("later", list(CARRIERS))
def test_a_leftover_in_another_carrier_is_swept(tmp_path: Path, later: str) -> None:
    """Its writer died before the entry; then the same documents were published, and the name is known."""
    documents = make_documents([5, 9], 1)
    for carrier in CARRIERS.values():
        with create(tmp_path / carrier.name, carrier=carrier.name) as writer:
            writer.publish(documents)
    cask, (entry,) = tmp_path / later, Cask.open(tmp_path / later).entries
    for carrier in CARRIERS.values():
        if carrier.name != later:
            name = entry.name + carrier.suffix
            (cask / "shards" / name).write_bytes((tmp_path / carrier.name / "shards" / name).read_bytes())
    (cask / "shards" / ".tmp-folder").mkdir()
    assert len(unlisted(Cask.open(cask))) == len(CARRIERS)
    assert survey(LocalFolder(folder=cask)).problems == []
    create(cask)
    expected = {".tmp-folder", entry.name + ".json", entry.name + CARRIERS[later].suffix}
    assert {file.name for file in (cask / "shards").iterdir()} == expected
    assert_same(Cask.open(cask).read(0), documents[0])


def test_an_error_that_came_too_late_doubles_nothing(tmp_path: Path) -> None:
    """The entry had its name when the disk failed: the writer cannot know, so it looks before it publishes again."""
    one, two, three = make_documents([5, 9, 12], 1)
    files = FailingFiles(10**9, errno.EIO)
    writer = create(tmp_path, files=files)
    writer.publish([make_document(3, 7)])
    for n in range(100):
        files.remaining, files.failed = n, ""
        try:
            writer.publish([one, two])
        except CaskWriteError:
            if len(Cask.open(tmp_path)) == 3:
                break
    assert files.failed == "sync directory"
    files.remaining = 10**9
    entry = writer.publish([two, three])
    assert entry is not None
    assert entry.documents == 1
    assert len(Cask.open(tmp_path)) == 4


def test_a_writer_that_met_damage_does_not_go_on_blindly(cask_path: Path) -> None:
    writer = create(cask_path)
    shard = next((cask_path / "shards").glob("*.arrow"))
    shard.rename(cask_path / "elsewhere")
    create_other = writers_lock(cask_path, holder="other", timeout_seconds=1)
    with create_other:
        pass
    for _ in range(2):
        with pytest.raises(CaskError, match="missing"):
            writer.publish([make_document(3, 7)])
    (cask_path / "elsewhere").rename(shard)
    assert writer.publish([make_document(3, 7)]) is not None


def test_a_live_writers_files_are_not_swept(tmp_path: Path) -> None:
    """A second writer opens while the first is inside its publication: it waits, and takes nothing away."""
    create(tmp_path)
    with writers_lock(tmp_path, holder="first", timeout_seconds=1):
        (tmp_path / "shards" / ".tmp-live").write_bytes(b"being written")
        second = threading.Thread(target=create, args=(tmp_path,))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert (tmp_path / "shards" / ".tmp-live").exists()
        (tmp_path / "shards" / ".tmp-live").unlink()
    second.join()


def test_the_index_follows_the_entries(tmp_path: Path) -> None:
    writer = create(tmp_path)
    for i in range(70):
        writer.publish([make_document(3, i)])
    assert (tmp_path / "index.json").exists()  # made on the way, since more than 64 entries were loose
    assert len(Cask.open(tmp_path)) == 70
    writer.close()
    entries = Cask.open(tmp_path).entries
    for entry in (tmp_path / "shards").glob("*.json"):
        entry.unlink()
    assert Cask.open(tmp_path).entries == entries


def test_the_index_can_be_deleted(cask_path: Path) -> None:
    entries = Cask.open(cask_path).entries
    index = (cask_path / "index.json").read_bytes()
    (cask_path / "index.json").unlink()
    assert Cask.open(cask_path).entries == entries
    create(cask_path).close()
    assert (cask_path / "index.json").read_bytes() == index


def test_publishing_lists_no_directory_while_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the cost of a publication independent of the number of shards."""
    writer = create(tmp_path)
    writer.publish([make_document(3, 1)])
    calls = []
    monkeypatch.setattr("logitcask_schemas.cask.local_home.read_listing", calls.append)
    writer.publish([make_document(3, 2)])
    assert calls == []


def test_other_teacher_or_spec_is_refused_with_its_fields(cask_path: Path) -> None:
    with pytest.raises(IdentityMismatchError, match=r"engine_version: '0' here, '1' offered"):
        CaskWriter.create(cask_path, teacher=make_teacher(engine_version="1"), capture=SPEC)
    with pytest.raises(IdentityMismatchError, match=r"tail_max: 32 here, 255 offered; tau: 0.05 here, 0.02 offered"):
        CaskWriter.create(cask_path, teacher=make_teacher(), capture=CaptureSpec(tau=0.02))
    # Fields that this mode does not use are no difference.
    CaskWriter.create(cask_path, teacher=make_teacher(), capture=CaptureSpec(tau=0.05, k=7, draws=3))


def test_other_tokenizer_is_refused(cask_path: Path) -> None:
    Cask.open(cask_path, tokenizer_fingerprint="b" * 64)
    with pytest.raises(IdentityMismatchError, match="tokenizer_fingerprint"):
        Cask.open(cask_path, tokenizer_fingerprint="c" * 64)


def with_column(**columns: np.ndarray) -> dict[str, np.ndarray]:
    return {**make_document(10, 1).records.position_columns, **columns}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"head_ids_H": np.full(0, 1, np.uint16)}, "head_ids"),
        ({"position_columns": with_column(entropy=np.full(9, np.nan, np.float16))}, "entropy"),
        ({"token_ids_L": np.full(10, 60_000, np.uint16)}, "token_ids holds id 60000"),
        ({"token_ids_L": np.roll(make_document(10, 1).token_ids_L, 1)}, "lacks the next token .* shifted"),
        ({"tail_ids_N": make_document(10, 1).records.tail_ids_N[::-1]}, "do not ascend"),
        ({"token_ids_L": np.full(10, -1, np.int64)}, "unsigned"),
        ({"position_columns": with_column(log_z=np.zeros((9, 1), np.float16))}, "does not store"),
    ],
)
def test_invalid_documents_leave_the_cask_alone(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    writer = create(tmp_path)
    with pytest.raises(InvalidRecordError, match=message):
        writer.publish([make_document(5, 1), changed(make_document(10, 1), **columns)])
    assert len(Cask.open(tmp_path)) == 0
    assert unlisted(Cask.open(tmp_path)) == []


def test_one_token_is_no_document(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecordError, match="1 tokens"):
        create(tmp_path).publish([make_document(1, 1)])


def test_missing_optional_columns_are_refused(tmp_path: Path) -> None:
    spec = CaptureSpec(tail_logprobs=True, temperatures=(2.0,))
    writer = CaskWriter.create(tmp_path, teacher=make_teacher(), capture=spec)
    complete = make_document(30, 1, spec=spec)
    columns = complete.records.position_columns
    without_log_z = {name: values for name, values in columns.items() if name != "log_z"}
    with pytest.raises(InvalidRecordError, match="lacks tail_logprobs"):
        writer.publish([changed(complete, tail_logprobs_N=None)])
    with pytest.raises(InvalidRecordError, match="lacks log_z"):
        writer.publish([changed(complete, position_columns=without_log_z)])
    with pytest.raises(InvalidRecordError, match="29 x 1 values, it has 58"):
        writer.publish([changed(complete, position_columns={**without_log_z, "log_z": np.zeros((29, 2), np.float16)})])
    not_a_number = np.full_like(complete.records.tail_logprobs_N, np.nan)
    with pytest.raises(InvalidRecordError, match=r"tail_logprobs\[0\] is NaN"):
        writer.publish([changed(complete, tail_logprobs_N=not_a_number)])
    for name, column in columns.items():
        with pytest.raises(InvalidRecordError, match=rf"{name}\[0\] is NaN"):
            writer.publish([changed(complete, position_columns={**columns, name: np.full_like(column, np.nan)})])
    empty = changed(make_document(30, 1, spec=spec, tails=False), tail_logprobs_N=None)
    writer.publish([empty])
    assert_same(Cask.open(tmp_path).read(0), make_document(30, 1, spec=spec, tails=False))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(CaskError, match="not a cask"):
        create(tmp_path)
    with pytest.raises(CaskError, match="in the way"):
        create(tmp_path / "thesis.tex")
    with pytest.raises(CaskWriteError):
        create(tmp_path / "thesis.tex" / "below")
