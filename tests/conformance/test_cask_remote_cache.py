"""The cache of fetched shards: its limit, by how much it may be exceeded, what the dead leave behind, full disks."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.location import CachedStore
from logitcask_schemas.cask.remote_cache import ShardCache
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cask.transfer.export import export_cask, target_of
from logitcask_schemas.errors import CaskWriteError
from tests.support.schemas.cask_samples import assert_same

pytest.importorskip("fsspec", reason="object stores need the extra `remote`")


@pytest.fixture
def url(memory: str, local: Path) -> str:
    list(export_cask(Cask.open(local), target_of(memory), "arrow"))
    return memory


def opened(url: str, folder: Path, shards: float) -> Cask:
    largest = max(entry.bytes for entry in Cask.open(url, cache=folder).entries)
    return Cask.open(url, cache=folder, cache_bytes=int(shards * largest))


def cache_of(cask: Cask) -> ShardCache:
    assert isinstance(cask.location, CachedStore)
    return cask.location.cache


def kept_bytes(cache: Path) -> int:
    files = [file for file in cache.rglob("shards/*") if file.suffix != ".json"]
    return sum(file.stat().st_size for file in files if file.exists())


def test_the_limit_is_exceeded_by_one_shard_a_reader(url: str, local: Path, tmp_path: Path, monkeypatch) -> None:
    """Four readers, room for one shard: none waits for room, none sees another's shard vanish under it."""
    cache, expected, seen = tmp_path / "cache", Cask.open(local), []
    limit, readers = cache_of(opened(url, cache, 1)).max_bytes, 4
    original = RemoteStore.download

    def slow(self: RemoteStore, name: str, target: Path, *rest: Any) -> None:
        original(self, name, target, *rest)
        time.sleep(0.002)
        seen.append(kept_bytes(cache))

    monkeypatch.setattr(RemoteStore, "download", slow)

    def read_all(_: int) -> None:
        cask = opened(url, cache, 1)
        for number in [*range(len(cask)), *reversed(range(len(cask)))]:
            assert_same(cask.read(number), expected.read(number))

    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read_all, range(readers)))
    assert max(seen) <= limit + readers * limit
    # Whoever fetches alone makes room for what it fetches.
    cask = opened(url, cache, 1)
    for entry in cask.entries:
        cache_of(cask).forget(entry)
        with cache_of(cask).held(entry):
            assert kept_bytes(cache) <= limit


def test_the_shard_opened_longest_ago_goes_first(url: str, tmp_path: Path) -> None:
    cask = opened(url, tmp_path, 2)
    paths = []
    for age, entry in enumerate(cask.entries[:2]):
        with cache_of(cask).held(entry) as path:
            os.utime(path, (age, age))
            paths.append(path)
    with cache_of(cask).held(cask.entries[0]):
        pass
    with cache_of(cask).held(cask.entries[2]) as path:
        assert [path.exists() for path in [*paths, path]] == [True, False, True]
    assert {lock.name for lock in (cache_of(cask).folder / "locks").iterdir()} == {
        f"{path.name}.lock" for path in (paths[0], path)
    }


def test_what_a_dead_process_left_is_removed(url: str, local: Path, tmp_path: Path) -> None:
    cask = opened(url, tmp_path, 1)
    shards = cache_of(cask).folder / "shards"
    shards.mkdir(parents=True)
    for name in (cask.entries[0].name, cask.entries[1].name, "0" * 32):
        (shards / f".tmp-{name}.arrow").write_bytes(b"half a shard")
    assert_same(cask.read(0), Cask.open(local).read(0))
    assert len(list(shards.iterdir())) == 1


def test_a_shard_that_is_being_opened_stays_and_nobody_waits_for_its_room(url: str, tmp_path: Path) -> None:
    cask = opened(url, tmp_path, 1)
    with cache_of(cask).held(cask.entries[0]) as first, cache_of(cask).held(cask.entries[1]) as second:
        assert first.exists()
        assert second.exists()
    with cache_of(cask).held(cask.entries[2]) as third:
        assert [path.exists() for path in (first, second, third)] == [False, False, True]


def test_a_full_disk_is_named_and_leaves_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cask = opened(url, tmp_path, 2)
    system, _ = RemoteStore(url)._system()

    def full(self: Any, path: str, target: str, **_: Any) -> None:
        Path(target).write_bytes(b"some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(system), "get_file", full)
    with pytest.raises(CaskWriteError, match="No space left on device") as caught:
        cask.read(0)
    assert caught.value.errno == errno.ENOSPC
    assert not list((cache_of(cask).folder / "shards").iterdir())
