"""Whose documents lie where, of casks in a store that nobody has closed: by parts of shards, as a folder tells it."""

from pathlib import Path

import numpy as np
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.errors import StoreError
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher
from tests.support.schemas.store_faults import FaultyStore

pytest.importorskip("s3fs", reason="object stores need the extra `remote`")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]
SHARDS = [make_documents([20, 120, 7], seed) for seed in range(3)]


def writer_of(place: Path | str, carrier: str = "arrow") -> CaskWriter:
    return CaskWriter.create(place, teacher=make_teacher(), capture=SPEC, carrier=carrier)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("closed", [False, True])
def test_a_reader_finds_documents_without_fetching_what_it_need_not(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carrier: str, closed: bool
) -> None:
    """The first shard is in the table; the others are, too, where the writer was closed."""
    for place in (tmp_path / "cask", f"{bucket}/cask"):
        writer = writer_of(place, carrier)
        writer.publish(SHARDS[0])
        writer.close()
        for documents in SHARDS[1:]:
            writer.publish(documents)
        if closed:
            writer.close()
    fetched = []
    original = RemoteStore.download

    def download(self, name, *more):
        fetched.append(name)
        return original(self, name, *more)

    monkeypatch.setattr(RemoteStore, "download", download)
    here, there = Cask.open(tmp_path / "cask"), Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")
    np.testing.assert_array_equal(there.document_ids(), here.document_ids())
    np.testing.assert_array_equal(there.document_lengths(), here.document_lengths())
    for documents in SHARDS:
        for document in documents:
            assert there.find(document.id) == here.find(document.id) is not None
    assert there.find(bytes(32)) is None
    shards = {name for name in fetched if name.startswith("shards/")}
    assert len(shards) == (0 if closed or carrier == "arrow" else 2)
    fetched.clear()
    for number in range(len(there)):
        there.read(number)
    assert not shards & set(fetched), "what had to be fetched was kept"


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("in_store", [False, True])
def test_a_writer_tells_the_shards_of_documents(bucket: str, tmp_path: Path, in_store: bool, closed: bool) -> None:
    place = f"{bucket}/cask" if in_store else tmp_path / "cask"
    writer = writer_of(place)
    entries = [writer.publish(documents) for documents in SHARDS]
    if closed:
        writer.close()
    ids = [{document.id for document in documents} for documents in SHARDS]
    names = [entry.name for entry in entries if entry is not None]
    for teller in (writer, writer_of(place)):
        assert teller.shards_with([bytes(32)]) == []
        assert teller.shards_with([SHARDS[1][2].id, bytes(32)]) == [(entries[1], ids[1])]
        both = teller.shards_with([SHARDS[0][0].id, SHARDS[2][1].id])
        assert {entry.name: own for entry, own in both} == {names[0]: ids[0], names[2]: ids[2]}
        assert [entry.name for entry, _ in both] == sorted([names[0], names[2]])


def test_a_store_is_usable_or_says_why_not(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = FaultyStore(monkeypatch)
    store = SharedStore(f"{bucket}/deep/casks")
    store.require_usable()
    assert [operation for operation, _ in faults.calls] == ["CreateMultipartUpload", "AbortMultipartUpload"]
    assert store.children() == []
    assert SharedStore(bucket).unfinished_uploads("deep") == []
    with pytest.raises(StoreError, match=r"-not/casks: there is no such bucket\. Make it"):
        SharedStore(f"{bucket}-not/casks").require_usable()
    faults.fault = lambda call, number: "denied"
    with pytest.raises(StoreError, match="the object store failed"):
        store.require_usable()


def test_a_store_of_another_kind_is_asked_for_its_list(memory: str) -> None:
    SharedStore(f"{memory}/casks").require_usable()
    assert RemoteStore(memory).children() == []
