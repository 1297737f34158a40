"""`CaskWriter` in an object store: what it publishes, what it finds there, and what it refuses."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.integrity.leftovers import Leftovers, leftovers
from logitcask_schemas.cask.integrity.remote_verify import survey_url
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import (
    CaskCorruptionError,
    CaskError,
    IdentityMismatchError,
    InvalidRecordError,
    StoreError,
)
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, assert_same, make_document, make_documents, make_teacher
from tests.support.schemas.hint_samples import assert_same_rows, with_hints
from tests.support.schemas.store_faults import FaultyStore

pytest.importorskip("s3fs", reason="object stores need the extra `remote`")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> FaultyStore:
    return FaultyStore(monkeypatch)


def writer_of(url: str, **options: Any) -> CaskWriter:
    options = {"teacher": make_teacher(), "capture": SPEC} | options
    return CaskWriter.create(url, **options)


def problems(url: str) -> list[str]:
    with survey_url(url) as remote:
        reports = verify_shards(remote.surveyed.cask, table=remote.surveyed.table, prove=remote.prove)
        return [*remote.surveyed.problems, *(problem for report in reports for problem in report.problems)]


def objects(url: str) -> dict[str, bytes]:
    store = RemoteStore(url)
    names = [*store.sizes(""), *(f"shards/{name}" for name in store.sizes("shards"))]
    return {name: store.read(name) for name in sorted(names)}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_store_gets_the_very_files_of_a_folder(bucket: str, tmp_path: Path, carrier: str) -> None:
    shards = [make_documents([20, 120, 7], seed) for seed in range(3)]
    places: list[Path | str] = [tmp_path / "cask", f"{bucket}/cask/"]
    for place in places:
        with writer_of(place, carrier=carrier) as writer:  # type: ignore[arg-type]
            for documents in shards:
                writer.publish(documents)
    here = {str(path.relative_to(tmp_path / "cask")): path.read_bytes() for path in (tmp_path / "cask").rglob("*.*")}
    there = objects(f"{bucket}/cask")
    for files in (here, there):
        files.pop("cask.lock", None)
        files.pop("cask.json")  # says when it was made
    assert there == here
    cask = Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")
    for document in (document for documents in shards for document in documents):
        number = cask.find(document.id)
        assert number is not None
        assert_same(cask.read(number), document)
    assert not problems(f"{bucket}/cask")


def test_a_publication_costs_two_puts_and_reads_nothing(bucket: str, faults: FaultyStore) -> None:
    writer = writer_of(f"{bucket}/cask")
    for seed in range(3):
        faults.calls.clear()
        entry = writer.publish(make_documents([5, 6], seed))
        assert entry is not None
        shard, note = f"cask/shards/{entry.name}.arrow", f"cask/shards/{entry.name}.json"
        assert faults.calls == [("PutObject", shard), ("HeadObject", shard), ("PutObject", note)]


def test_the_same_shard_twice_is_one(bucket: str, tmp_path: Path) -> None:
    first, second = writer_of(f"{bucket}/cask"), writer_of(f"{bucket}/cask")
    documents = make_documents([5, 6], 1)
    entry = first.publish(documents)
    before = objects(f"{bucket}/cask")
    assert second.publish(documents) == entry
    assert objects(f"{bucket}/cask") == before
    assert second.publish(documents) is None
    assert len(Cask.open(f"{bucket}/cask", cache=tmp_path)) == 2


def test_who_comes_second_announces_nothing(bucket: str) -> None:
    """The shard that he finds there is the first one's; a writer of the same documents that knows nothing of it."""
    documents, heard = make_documents([20, 120, 7], 0), list[str]()
    first, second = writer_of(f"{bucket}/cask"), writer_of(f"{bucket}/cask")
    entry = first.publish(documents, announce=heard.append)
    assert entry is not None
    assert heard == [entry.name]
    assert not second.has(documents[0].id)
    assert second.publish(documents, announce=heard.append) == entry
    assert heard == [entry.name]


def test_the_same_documents_in_another_carrier_are_the_first_ones(bucket: str, tmp_path: Path) -> None:
    first, second = writer_of(f"{bucket}/cask"), writer_of(f"{bucket}/cask", carrier="parquet")
    documents = make_documents([5, 6], 1)
    entry = first.publish(documents)
    assert second.publish(documents) == entry
    assert len(Cask.open(f"{bucket}/cask", cache=tmp_path)) == 2
    assert not problems(f"{bucket}/cask")


@pytest.mark.parametrize("carrier", ["arrow", "zarr"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_writer_knows_what_was_published_before_it_was_made(bucket: str, carrier: str, closed: bool) -> None:
    documents = make_documents([5, 6, 7], 1)
    first = writer_of(f"{bucket}/cask", carrier=carrier)
    first.publish(documents[:2])
    if closed:
        first.close()
    second = writer_of(f"{bucket}/cask", carrier=carrier)
    assert [second.has(document.id) for document in documents] == [True, True, False]
    first.publish(documents[2:])
    assert not second.has(documents[2].id)
    second.refresh()
    assert second.has(documents[2].id)
    assert second.num_documents == 3
    with pytest.raises(CaskError, match="is already stored or given twice"):
        second.publish(documents, on_duplicate="error")


def test_ids_are_read_without_the_records(bucket: str, faults: FaultyStore) -> None:
    writer_of(f"{bucket}/cask").publish(make_documents([500] * 20, 1))
    (name,) = [name for name in RemoteStore(f"{bucket}/cask").sizes("shards") if name.endswith(".arrow")]
    faults.calls.clear()
    assert writer_of(f"{bucket}/cask").num_documents == 20
    assert [call for call in faults.calls if call[1].endswith(name)] == [("GetObject", f"cask/shards/{name}")] * 2


def test_a_shard_that_is_framed_otherwise_is_fetched(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = make_documents([5, 6], 1)
    writer_of(f"{bucket}/cask").publish(documents)
    monkeypatch.setattr("logitcask_schemas.cask.store_documents._frame_of", lambda *_: None)
    assert all(writer_of(f"{bucket}/cask").has(document.id) for document in documents)


def test_another_teacher_or_spec_is_refused_by_name(bucket: str) -> None:
    writer_of(f"{bucket}/cask")
    with pytest.raises(IdentityMismatchError, match="weights_digest"):
        writer_of(f"{bucket}/cask", teacher=make_teacher(weights_digest="c" * 64))
    with pytest.raises(IdentityMismatchError, match="tau"):
        writer_of(f"{bucket}/cask", capture=CaptureSpec(tau=0.04))


def test_what_is_no_cask_is_left_alone(bucket: str) -> None:
    RemoteStore(bucket).write("casks/one/cask.json", b"{}")
    with pytest.raises(CaskError, match=r"holds 'one' and no cask\.json: not a cask"):
        writer_of(f"{bucket}/casks")
    RemoteStore(bucket).write("export/shards/" + "a" * 32 + ".json", b"{}")
    with pytest.raises(CaskError, match=r"holds shards, but no cask\.json: an export into it has not finished"):
        writer_of(f"{bucket}/export")
    RemoteStore(bucket).write("notes/notes/today", b"of the folder's own name")
    with pytest.raises(CaskError, match=r"holds 'notes' and no cask\.json: not a cask"):
        writer_of(f"{bucket}/notes")
    with pytest.raises(StoreError, match="there is no such bucket"):
        writer_of("s3://no-such-bucket/cask")


def test_an_address_has_no_query(bucket: str) -> None:
    """`?versionId=` would make one object of all: the client of S3 takes it from the name."""
    with pytest.raises(CaskError, match=r"an address of a folder has no `\?`"):
        writer_of(f"{bucket}/cask?versionId=1")
    assert RemoteStore(bucket).children() == []


@pytest.mark.parametrize("address", ["{}//cask", "{}/casks//cask/"])
def test_an_address_has_a_name_between_slashes(bucket: str, address: str) -> None:
    """The client of S3 puts into `bucket//cask` what it then looks for in `bucket/cask`, which may be another one's."""
    with writer_of(f"{bucket}/cask") as writer:
        writer.publish(make_documents((20, 12), 0))
    with pytest.raises(CaskError, match=r"an address of a folder has no `//`"):
        writer_of(address.format(bucket))
    assert RemoteStore(bucket).children() == ["cask"]
    assert RemoteStore(f"{bucket}/cask//").url == f"{bucket}/cask"


def test_folders_that_a_console_has_made_are_no_content(bucket: str) -> None:
    """They are empty objects, whose names end with a slash."""
    system, root = RemoteStore(bucket)._system()
    for key in ("cask/", "cask/shards/"):
        system.call_s3("put_object", Bucket=root, Key=key, Body=b"")
    with writer_of(f"{bucket}/cask") as writer:
        writer.publish(make_documents((20, 12), 0))
    assert len(RemoteStore(f"{bucket}/cask").sizes("shards")) == 2
    assert leftovers(f"{bucket}/cask", timedelta(0), now=datetime.now(UTC) + timedelta(days=1)) == Leftovers()


def test_stores_without_conditional_puts_want_a_single_writer(memory: str, tmp_path: Path) -> None:
    with pytest.raises(CaskError, match="say that there is a single writer"):
        writer_of(f"{memory}/cask")
    assert not RemoteStore(memory).children()
    with writer_of(f"{memory}/cask", single_writer=True) as writer:
        entry = writer.publish(make_documents([5, 6], 1))
    other = writer_of(f"{memory}/cask", single_writer=True)
    assert other.num_documents == 2
    assert other.publish(make_documents([5, 6], 1)) is None
    assert [found.name for found in Cask.open(f"{memory}/cask", cache=tmp_path).entries] == [entry.name]


@pytest.mark.parametrize("answer", ["ignores_condition", "unknown_condition"])
def test_a_store_that_ignores_the_condition_is_found_out(bucket: str, faults: FaultyStore, answer: str) -> None:
    writer_of(f"{bucket}/cask")
    before = objects(f"{bucket}/cask")
    faults.fault = lambda call, number: answer if call[0] == "PutObject" else None
    with pytest.raises(CaskError, match="say that there is a single writer"):
        writer_of(f"{bucket}/cask")
    assert objects(f"{bucket}/cask") == before
    if answer == "ignores_condition":
        writer_of(f"{bucket}/cask", single_writer=True).publish(make_documents([5], 1))


def test_a_leftover_is_proved_and_taken(bucket: str, tmp_path: Path) -> None:
    """The shard of a writer that died before its entry."""
    entry = writer_of(f"{bucket}/there").publish(make_documents([5, 6], 1))
    assert entry is not None
    writer_of(f"{bucket}/cask")
    name = f"shards/{entry.name}.arrow"
    RemoteStore(f"{bucket}/cask").write(name, RemoteStore(f"{bucket}/there").read(name))
    assert len(Cask.open(f"{bucket}/cask", cache=tmp_path)) == 0
    writer = writer_of(f"{bucket}/cask")
    assert writer.num_documents == 0
    assert writer.publish(make_documents([5, 6], 1)) == entry
    assert not problems(f"{bucket}/cask")


def test_a_leftover_of_another_library_is_described_as_it_is(bucket: str, tmp_path: Path) -> None:
    """A Zarr file of the same documents whose bytes differ: here as its archive has a comment."""
    entry = writer_of(f"{bucket}/there", carrier="zarr").publish(make_documents([5, 6], 1))
    assert entry is not None
    name = f"shards/{entry.name}.zarr.zip"
    content = RemoteStore(f"{bucket}/there").read(name)
    other = content[:-2] + (5).to_bytes(2, "little") + b"other"
    writer = writer_of(f"{bucket}/cask", carrier="zarr")
    RemoteStore(f"{bucket}/cask").write(name, other)
    published = writer.publish(make_documents([5, 6], 1))
    assert published is not None
    assert (published.name, published.bytes) == (entry.name, len(other))
    assert RemoteStore(f"{bucket}/cask").read(name) == other
    assert not problems(f"{bucket}/cask")


@pytest.mark.parametrize("content", [b"something else", None])
def test_what_is_in_the_way_of_a_shard_is_named_and_stays(bucket: str, content: bytes | None) -> None:
    entry = writer_of(f"{bucket}/there").publish(make_documents([5, 6], 1))
    other = writer_of(f"{bucket}/there").publish(make_documents([8, 9], 2))
    assert entry is not None
    assert other is not None
    content = content or RemoteStore(f"{bucket}/there").read(f"shards/{other.name}.arrow")
    writer, name = writer_of(f"{bucket}/cask"), f"shards/{entry.name}.arrow"
    RemoteStore(f"{bucket}/cask").write(name, content)
    with pytest.raises(CaskCorruptionError, match=rf"{name}: is in the way .* remove the object, and publish again"):
        writer.publish(make_documents([5, 6], 1))
    assert RemoteStore(f"{bucket}/cask").read(name) == content
    RemoteStore(f"{bucket}/cask").delete(name)
    assert writer.publish(make_documents([5, 6], 1)) == entry


HINTS = HintSpec(layers=(1, 3), codec="i8")


def hinted(lengths: list[int], seed: int, width: int = 24) -> list[DocumentRecords]:
    return [with_hints(document, HINTS, width) for document in make_documents(lengths, seed)]


def test_hints_go_before_the_entry_and_have_one_width(bucket: str, tmp_path: Path, faults: FaultyStore) -> None:
    spec, documents = CaptureSpec(tau=0.05, hints=HINTS), hinted([5, 6], 1)
    writer = writer_of(f"{bucket}/cask", capture=spec)
    faults.calls.clear()
    entry = writer.publish(documents)
    assert entry is not None
    assert [key.rpartition("/")[2] for _, key in faults.puts()] == [
        f"{entry.name}{suffix}" for suffix in (".arrow", ".hints.arrow", ".json")
    ]
    assert writer_of(f"{bucket}/cask", capture=spec).publish(documents) is None
    with pytest.raises(InvalidRecordError, match="vectors of 24 numbers, those of the new shard have 8"):
        writer_of(f"{bucket}/cask", capture=spec).publish(hinted([9], 2, width=8))
    # Of a shard whose writer died, the hints are taken as they lie there.
    RemoteStore(f"{bucket}/cask").delete(f"shards/{entry.name}.json")
    assert writer_of(f"{bucket}/cask", capture=spec).publish(documents) == entry
    cask = Cask.open(f"{bucket}/cask", cache=tmp_path)
    for document in documents:
        number = cask.find(document.id)
        assert number is not None
        assert document.hints is not None
        assert_same_rows(cask.hints(number), document.hints)
    assert not problems(f"{bucket}/cask")


def test_writers_that_close_at_once_lose_nothing(bucket: str, tmp_path: Path) -> None:
    writers = [writer_of(f"{bucket}/cask") for _ in range(4)]
    for seed, writer in enumerate(writers):
        writer.publish([make_document(9, seed)])
    for writer in writers:
        writer.close()
    cask = Cask.open(f"{bucket}/cask", cache=tmp_path)
    listing, table = cask.location.read_listing(), cask.location.read_table()
    assert (len(listing.indexed), listing.loose) == (4, {})
    assert table is not None
    assert table.num_documents == 4


def test_an_index_that_somebody_else_made_meanwhile_is_not_replaced(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitcask_schemas.cask import store_compaction
    from logitcask_schemas.cask.directory import read_listing

    first, second = writer_of(f"{bucket}/cask"), writer_of(f"{bucket}/cask")
    first.publish([make_document(9, 1)])
    original, closing = read_listing, [first]

    def listing(directory: Any) -> Any:
        read = original(directory)
        if closing:  # when the one has listed the shards, the other publishes one more and is faster
            second.publish([make_document(9, 2)])
            closing.pop()
            second.close()
        return read

    monkeypatch.setattr(store_compaction, "read_listing", listing)
    first.close()
    cask = Cask.open(f"{bucket}/cask", cache=tmp_path)
    assert len(cask.location.read_listing().indexed) == 2
    table = cask.location.read_table()
    assert table is not None
    assert table.num_documents == 2


def test_nothing_is_left_in_the_temporary_folder(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with writer_of(f"{bucket}/cask") as writer:
        writer.publish(make_documents([5, 6], 1))
        assert not [*tmp_path.iterdir()]
