"""Casks in an object store: a local server that speaks S3, on loopback."""

import json
import os
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.location import CachedStore
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cask.transfer.export import export_cask, open_source, target_of
from logitcask_schemas.cli.cask import app
from logitcask_schemas.errors import (
    CaskCorruptionError,
    CaskError,
    CaskNotFoundError,
    IdentityMismatchError,
    MissingExtraError,
)
from tests.support.schemas.cask_samples import SPEC, assert_same, make_document, make_teacher

pytest.importorskip("s3fs", reason="object stores need the extra `remote`")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


def export(source: Path, url: str, carrier: str = "arrow") -> list[bool]:
    return [step.skipped for step in export_cask(Cask.open(source), target_of(url), carrier)]


def cached_bytes(cache: Path) -> int:
    return sum(file.stat().st_size for file in cache.rglob("shards/*") if file.suffix != ".json")


def files_of(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.suffix != ".lock"}


@pytest.mark.parametrize("carrier", ["arrow", "zarr", "parquet"])
def test_there_and_back_gives_the_very_same_files(bucket: str, local: Path, tmp_path: Path, carrier: str) -> None:
    assert export(local, f"{bucket}/a/cask", carrier) == [False] * 3
    assert export(local, f"{bucket}/a/cask", carrier) == [True] * 3
    with open_source(f"{bucket}/a/cask") as source:
        steps = list(export_cask(source, target_of(str(tmp_path / "back")), "arrow"))
    assert len(steps) == 3
    assert files_of(tmp_path / "back") == files_of(local)


@pytest.mark.parametrize("carrier", ["arrow", "zarr"])
def test_reading_through_a_small_cache(bucket: str, local: Path, tmp_path: Path, carrier: str) -> None:
    export(local, f"{bucket}/cask", carrier)
    cache, expected = tmp_path / "cache", Cask.open(local)
    limit = 2 * max(entry.bytes for entry in Cask.open(f"{bucket}/cask", cache=cache).entries) + 100
    cask = Cask.open(f"{bucket}/cask/", cache=cache, cache_bytes=limit, tokenizer_fingerprint="b" * 64)
    assert isinstance(cask.location, CachedStore)
    assert len(cask) == len(expected)
    assert (cask.document_lengths() == expected.document_lengths()).all()
    assert cask.find(expected.read(5).id) == 5
    assert cached_bytes(cache) == 0, "lengths and ids come from the table, not from shards"
    for number in [*range(len(cask)), *reversed(range(len(cask)))]:
        assert_same(cask.read(number), expected.read(number))
        assert cached_bytes(cache) <= limit
    assert sum(cask.entries[number].bytes for number in cask._open) <= limit


def test_a_second_reader_fetches_nothing(bucket: str, local: Path, tmp_path: Path, monkeypatch) -> None:
    export(local, f"{bucket}/cask")
    first = Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")
    for number in range(len(first)):
        first.read(number)
    fetched = []
    monkeypatch.setattr(RemoteStore, "download", lambda *arguments: fetched.append(arguments))
    second = Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")
    for number in range(len(second)):
        second.read(number)
    assert not fetched


def read_all(cask: Cask) -> list[bytes]:
    return [cask.read(n).id + cask.read(n).records.head_logprobs_H.tobytes() for n in range(len(cask))]


@pytest.mark.parametrize(("method", "touched"), [("fork", False), ("fork", True), ("spawn", True)])
def test_workers_share_a_cache(bucket: str, local: Path, tmp_path: Path, method: str, touched: bool) -> None:
    export(local, f"{bucket}/cask")
    expected = read_all(Cask.open(local))
    largest = max(entry.bytes for entry in Cask.open(local).entries)
    cask = Cask.open(f"{bucket}/cask", cache=tmp_path / "cache", cache_bytes=2 * largest)
    if touched:
        cask.read(0)
    # Each worker reads the whole cask twice through a cache that holds two shards of three.
    workers = 2
    with get_context(method).Pool(workers) as pool:
        assert pool.map_async(read_all, [cask] * 4, chunksize=1).get(timeout=120) == [expected] * 4
    # Nobody waits for room: the limit may be exceeded by a shard a process.
    assert cached_bytes(tmp_path / "cache") <= (2 + workers) * largest


def test_an_evicted_shard_stays_readable_where_it_is_mapped(bucket: str, local: Path, tmp_path: Path) -> None:
    export(local, f"{bucket}/cask")
    largest = max(entry.bytes for entry in Cask.open(local).entries)
    cask = Cask.open(f"{bucket}/cask", cache=tmp_path / "cache", cache_bytes=largest)
    document = cask.read(0)
    content = document.records.head_ids_H.tobytes()
    cask.read(len(cask) - 1)
    assert document.records.head_ids_H.tobytes() == content
    assert_same(cask.read(0), Cask.open(local).read(0))


def test_new_shards_are_seen_when_it_is_opened_again(bucket: str, local: Path, tmp_path: Path) -> None:
    export(local, f"{bucket}/cask")
    before = Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")
    extra = make_document(9, 4242)
    with CaskWriter.create(local, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish([extra])
    assert sum(not skipped for skipped in export(local, f"{bucket}/cask")) == 1
    assert len(Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")) == len(before) + 1


def test_an_unfinished_export_is_no_cask_and_goes_on(bucket: str, local: Path, tmp_path: Path) -> None:
    running: Any = export_cask(Cask.open(local), target_of(f"{bucket}/cask"), "zarr")
    next(running)
    next(running)
    running.close()
    with pytest.raises(CaskNotFoundError, match="not a cask"):
        Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")
    assert export(local, f"{bucket}/cask", "zarr") == [True] * 2 + [False]
    assert len(Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")) == len(Cask.open(local))


def test_damage_in_the_store_is_found_before_it_is_read(bucket: str, local: Path, tmp_path: Path) -> None:
    export(local, f"{bucket}/cask")
    store, entry = RemoteStore(f"{bucket}/cask"), Cask.open(local).entries[0]
    name = f"shards/{entry.name}.arrow"
    content = bytearray(store.read(name))
    content[len(content) // 2] ^= 1
    store.write(name, bytes(content))
    cask = Cask.open(f"{bucket}/cask", cache=tmp_path / "cache")
    with pytest.raises(CaskCorruptionError, match=rf"{entry.name}.*should have .* SHA-256 {entry.sha256}, came as"):
        cask.read(0)
    store.write(name, bytes(content[:50]))
    with pytest.raises(CaskCorruptionError, match="came as 50 bytes"):
        cask.read(0)
    store._system()[0].rm_file(f"{bucket}/cask/{name}")
    with pytest.raises(CaskNotFoundError, match=f"{name}: there is no such object"):
        cask.read(0)
    assert cached_bytes(tmp_path / "cache") == 0


def test_a_torn_local_copy_is_fetched_again(bucket: str, local: Path, tmp_path: Path) -> None:
    export(local, f"{bucket}/cask")
    Cask.open(f"{bucket}/cask", cache=tmp_path / "cache").read(0)
    (copy,) = (tmp_path / "cache").rglob("shards/*.arrow")
    copy.unlink()
    copy.write_bytes(b"torn")
    assert_same(Cask.open(f"{bucket}/cask", cache=tmp_path / "cache").read(0), Cask.open(local).read(0))


def test_clear_errors(bucket: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaskNotFoundError, match=r"not a cask \(it has no cask\.json\)"):
        Cask.open(f"{bucket}/nothing", cache=tmp_path)
    with pytest.raises(CaskError, match="name one with cache="):
        Cask.open(f"{bucket}/cask")
    export(local, f"{bucket}/cask")
    with pytest.raises(IdentityMismatchError, match="tokenizer_fingerprint"):
        Cask.open(f"{bucket}/cask", cache=tmp_path / "c", tokenizer_fingerprint="0" * 64)
    with pytest.raises(CaskError, match="the cache may hold 10; allow more"):
        Cask.open(f"{bucket}/cask", cache=tmp_path / "c", cache_bytes=10).read(0)
    with pytest.raises(CaskError, match="not an address of an object store"):
        Cask.open("nosuchprotocol://bucket/cask", cache=tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(CaskError, match=r"the object store failed.*Check address, credentials"):
        RemoteStore(f"{bucket}/cask", {"config_kwargs": {"retries": {"max_attempts": 0}}}).read("cask.json")


def test_a_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    loaded = sys.modules["fsspec.registry"]._registry  # by its module: the package has an attribute of that name
    monkeypatch.delitem(loaded, "s3", raising=False)
    with pytest.raises(MissingExtraError, match=r"'s3fs'.*\.\[remote\]"):
        Cask.open("s3://bucket/cask", cache=tmp_path)


def test_commands(bucket: str, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["export", str(local), f"{bucket}/cask", "--carrier", "zarr", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["documents"] == 9
    app(["import", f"{bucket}/cask", str(tmp_path / "back"), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["shards"] == 3
    assert files_of(tmp_path / "back") == files_of(local)
    assert "AWS_ENDPOINT_URL" in os.environ


def test_training_sequences_are_those_of_the_local_cask(bucket: str, local: Path, tmp_path: Path) -> None:
    from logitcask_consumer.data import CaskDataset, open_casks

    export(local, bucket)

    def sequences(place: Path | str, **options: object) -> list[bytes]:
        casks = open_casks([place], tokenizer_fingerprint=None, **options)  # type: ignore[arg-type]
        dataset = CaskDataset(casks, seq_len=128, overlap=8, seed=3)
        read = [dataset[number].windows for number in range(len(dataset))]
        assert sum(windows.num_windows for windows in read) >= 9
        return [windows.token_ids_L.tobytes() + windows.records.head_logprobs_H.tobytes() for windows in read]

    here = sequences(local)
    smallest = min(file.stat().st_size for file in local.rglob("*.arrow"))
    there = sequences(bucket, cache=tmp_path / "cache", cache_bytes=3 * smallest)
    assert here == there
