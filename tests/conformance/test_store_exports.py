"""Exports into an object store in which others publish at the same time."""

from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cask.transfer.export import export_cask, target_of
from logitcask_schemas.errors import IdentityMismatchError
from tests.support.schemas.cask_samples import SPEC, make_document, make_teacher

pytest.importorskip("s3fs", reason="object stores need the extra `remote`")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


def test_a_cask_that_somebody_made_meanwhile_is_not_overwritten(bucket: str, local: Path) -> None:
    running: Any = export_cask(Cask.open(local), target_of(f"{bucket}/cask"), "arrow")
    for _ in range(3):
        next(running)
    theirs = f"{bucket}/theirs"
    CaskWriter.create(theirs, teacher=make_teacher(weights_digest="c" * 64), capture=SPEC)
    manifest = RemoteStore(theirs).read("cask.json")
    RemoteStore(f"{bucket}/cask").write("cask.json", manifest)
    with pytest.raises(IdentityMismatchError, match="weights_digest"):
        list(running)
    assert RemoteStore(f"{bucket}/cask").read("cask.json") == manifest


def test_a_shard_that_a_writer_published_stays_as_its_entry_says(bucket: str, local: Path, tmp_path: Path) -> None:
    """The same documents as another library's file: neither object nor entry may change under a reader."""
    url, store = f"{bucket}/cask", RemoteStore(f"{bucket}/cask")
    running: Any = export_cask(Cask.open(local), target_of(url), "zarr")
    next(running)
    second = Cask.open(local).entries[1]
    list(export_cask(Cask.open(local), target_of(f"{bucket}/other"), "zarr"))
    name = f"shards/{second.name}.zarr.zip"
    content = RemoteStore(f"{bucket}/other").read(name)
    store.write(name, content[:-2] + (5).to_bytes(2, "little") + b"other")
    steps = list(running)
    assert [step.target.bytes - len(content) for step in steps if step.source.name == second.name] == [5]
    cask = Cask.open(url, cache=tmp_path)
    assert len(cask) == len(Cask.open(local))
    assert [len(cask.read(number).token_ids_L) for number in range(len(cask))]


def test_what_an_entry_names_and_the_store_has_lost_is_sent_again(bucket: str, local: Path, tmp_path: Path) -> None:
    url, store, entry = f"{bucket}/cask", RemoteStore(f"{bucket}/cask"), Cask.open(local).entries[0]
    list(export_cask(Cask.open(local), target_of(url), "arrow"))
    store.write(f"shards/{entry.name}.arrow", b"short")
    with CaskWriter.create(url, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish([make_document(9, 4242)])
    with CaskWriter.create(local, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish([make_document(9, 4242)])
    assert [step.skipped for step in export_cask(Cask.open(local), target_of(url), "arrow")].count(False) == 1
    assert len(Cask.open(url, cache=tmp_path)) == len(Cask.open(local))
    assert store.size(f"shards/{entry.name}.arrow") == entry.bytes
