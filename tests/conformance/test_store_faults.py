"""Publishing into an object store that fails, from a process that dies, beside others: nothing half, nothing lost."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.integrity.remote_verify import survey_url
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import StoreError
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, make_document, make_documents, make_teacher
from tests.support.schemas.store_faults import FaultyStore, once

pytest.importorskip("s3fs", reason="object stores need the extra `remote`")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]
DOCUMENTS = make_documents([5, 6], 1)
PUTS_OF_A_LIFE = 7
"""Manifest, the question whether conditions are honoured, shard, entry, table and index; and one to see the end."""


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> FaultyStore:
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)
    return FaultyStore(monkeypatch)


def writer_of(url: str) -> CaskWriter:
    return CaskWriter.create(url, teacher=make_teacher(), capture=SPEC)


def require_sound(url: str, cache: Path, documents: list[DocumentRecords]) -> None:
    """Every byte that readers can see is whole, and these documents are all of it, once each."""
    with survey_url(url) as remote:
        reports = verify_shards(remote.surveyed.cask, table=remote.surveyed.table, prove=remote.prove)
        assert not [*remote.surveyed.problems, *(problem for report in reports for problem in report.problems)]
    ids = [identity.tobytes() for identity in Cask.open(url, cache=cache).document_ids()]
    assert sorted(ids) == sorted(document.id for document in documents)


@pytest.mark.parametrize("suffix", ["cask.json", ".arrow", ".json", "documents.bin", "index.json"])
def test_a_put_whose_answer_was_lost_is_ones_own(bucket: str, tmp_path: Path, faults: FaultyStore, suffix: str) -> None:
    faults.fault = once("lost", "PutObject", suffix)
    with writer_of(f"{bucket}/cask") as writer:
        assert writer.publish(DOCUMENTS) is not None
    keys = [key for operation, key in faults.calls if operation == "PutObject" and key.endswith(suffix)]
    assert len(keys) > len(set(keys)), "it was put again"
    faults.fault = None
    require_sound(f"{bucket}/cask", tmp_path, DOCUMENTS)


@pytest.mark.parametrize("fault", ["slow_down", "conflict", "slow"])
def test_what_passes_is_waited_for(bucket: str, tmp_path: Path, faults: FaultyStore, fault: str) -> None:
    seen = set[tuple[str, str]]()

    def each_once(call: tuple[str, str], number: int) -> str | None:
        first = call not in seen and (fault != "conflict" or call[0] == "PutObject")
        seen.add(call)
        return fault if first else None

    faults.fault = each_once
    with writer_of(f"{bucket}/cask") as writer:
        assert writer.publish(DOCUMENTS) is not None
    require_sound(f"{bucket}/cask", tmp_path, DOCUMENTS)


@pytest.mark.parametrize("fault", ["denied", "gone"])
@pytest.mark.parametrize("suffix", [".arrow", ".json"])
def test_a_store_that_refuses_is_named_and_publishing_goes_on_later(
    bucket: str, tmp_path: Path, faults: FaultyStore, fault: str, suffix: str
) -> None:
    writer = writer_of(f"{bucket}/cask")
    earlier = make_document(9, 3)
    writer.publish([earlier])
    faults.fault = lambda call, number: fault if call[1].endswith(suffix) else None
    with pytest.raises(StoreError, match=rf"{suffix}: the object store failed: .* try again"):
        writer.publish(DOCUMENTS)
    faults.fault = None
    require_sound(f"{bucket}/cask", tmp_path, [earlier])
    assert writer.publish(DOCUMENTS) is not None
    require_sound(f"{bucket}/cask", tmp_path, [earlier, *DOCUMENTS])


def test_after_an_entry_whose_answer_never_came_the_writer_looks(
    bucket: str, tmp_path: Path, faults: FaultyStore
) -> None:
    writer = writer_of(f"{bucket}/cask")
    lost = once("lost", "PutObject", ".json")
    gone = False

    def fault(call: tuple[str, str], number: int) -> str | None:
        nonlocal gone
        what = "gone" if gone else lost(call, number)
        gone = gone or what is not None
        return what

    faults.fault = fault
    with pytest.raises(StoreError):
        writer.publish(DOCUMENTS)
    faults.fault = None
    assert writer.publish(DOCUMENTS) is None, "it was published"
    require_sound(f"{bucket}/cask", tmp_path, DOCUMENTS)


@pytest.mark.parametrize("torn", ["UploadPart", "CompleteMultipartUpload"])
def test_an_upload_in_parts_that_breaks_leaves_nothing_to_see(
    bucket: str, tmp_path: Path, faults: FaultyStore, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    part = 5 << 20  # the least that S3 takes
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None, **_: chunksize or part)
    documents = [make_document(60_000, seed) for seed in range(4)]
    writer = writer_of(f"{bucket}/cask")
    faults.fault = lambda call, number: "gone" if call[0] == torn else None
    with pytest.raises(StoreError):
        writer.publish(documents)
    assert not RemoteStore(f"{bucket}/cask").sizes("shards")
    assert faults.calls[-1][0] == "ListObjectsV2"
    assert "AbortMultipartUpload" in [operation for operation, _ in faults.calls]
    # A part whose answer is lost is sent again; so is the last word, which then finds its own work.
    faults.fault = once("lost", torn)
    assert writer.publish(documents) is not None
    faults.fault = None
    require_sound(f"{bucket}/cask", tmp_path, documents)


def live_and_die(url: str, at: int) -> None:
    """A writer's life, cut short after a put, which is before the next one."""
    patch = pytest.MonkeyPatch()
    faults = FaultyStore(patch)
    faults.fault = lambda call, number: "kill" if call[0] == "PutObject" and number == at else None
    with writer_of(url) as writer:
        writer.publish(DOCUMENTS)


def test_a_writer_killed_at_any_put_leaves_a_cask_or_none(bucket: str, tmp_path: Path) -> None:
    entries, ended = list[int](), 0
    for at in range(PUTS_OF_A_LIFE):
        url = f"{bucket}/cask{at}"
        process = get_context("fork").Process(target=live_and_die, args=(url, at))
        process.start()
        process.join()
        ended += process.exitcode == 0
        entries.append(len(Cask.open(url, cache=tmp_path / "cache").entries))
        require_sound(url, tmp_path / "cache", DOCUMENTS if entries[-1] else [])
        # Whoever comes next finishes the work.
        with writer_of(url) as writer:
            published = writer.publish(DOCUMENTS)
        assert (published is None) == (entries[-1] == 1)
        require_sound(url, tmp_path / "cache", DOCUMENTS)
    assert ended == 1, "the last life is whole"
    assert entries == [0, 0, 0, 1, 1, 1, 1]


def together(work: Callable[[int], Any], count: int) -> list[Any]:
    """The results of as many threads that begin at the same time."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_sixteen_writers_of_the_same_shard_make_one(bucket: str, tmp_path: Path) -> None:
    """And one cask, whichever of them made it."""
    entries = together(lambda _: writer_of(f"{bucket}/cask").publish(DOCUMENTS), 16)
    assert len({entry for entry in entries if entry is not None}) == 1
    require_sound(f"{bucket}/cask", tmp_path, DOCUMENTS)


def test_sixteen_writers_of_different_shards_while_others_read(bucket: str, tmp_path: Path) -> None:
    writers = [writer_of(f"{bucket}/cask") for _ in range(16)]
    shards = [[make_documents([5, 6], 100 * number + seed) for seed in range(2)] for number in range(16)]
    ended, seen = threading.Event(), [0]

    def read() -> None:
        while not ended.is_set() or len(seen) < 3:
            cask = Cask.open(f"{bucket}/cask", cache=tmp_path / "reading")
            for number in range(len(cask)):
                cask.read(number)
            seen.append(len(cask))

    def publish(number: int) -> None:
        for documents in shards[number]:
            assert writers[number].publish(documents) is not None
        if number % 4 == 0:
            writers[number].close()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            together(publish, 16)
        finally:
            ended.set()
        reading.result()
    assert seen == sorted(seen), "what was once published stays"
    writers[1].close()
    documents = [document for own in shards for shard in own for document in shard]
    require_sound(f"{bucket}/cask", tmp_path, documents)
    listing = Cask.open(f"{bucket}/cask", cache=tmp_path).location.read_listing()
    assert (len(listing.indexed), len(listing.loose)) == (32, 0)
