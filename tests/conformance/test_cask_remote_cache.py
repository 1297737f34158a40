"""The cache of fetched shards: its limit however many fetch at once, what the dead leave behind, full disks."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cask_samples import assert_same

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.location import CachedStore
from logitcask_schemas.cask.remote_cache import ShardCache
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cask.transfer.export import export_cask, target_of
from logitcask_schemas.errors import CaskError, CaskWriteError

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


def test_the_limit_holds_however_many_fetch(url: str, local: Path, tmp_path: Path, monkeypatch) -> None:
    """Four readers, room for one shard: each waits for room, none sees another's shard vanish under it."""
    cache, expected, seen = tmp_path / "cache", Cask.open(local), []
    limit = cache_of(opened(url, cache, 1)).max_bytes
    original = RemoteStore.download

    def slow(self: RemoteStore, name: str, target: Path, *rest: Any) -> None:
        original(self, name, target, *rest)
        time.sleep(0.002)
        files = [file for file in cache.rglob("shards/*") if file.suffix != ".json"]
        seen.append(sum(file.stat().st_size for file in files if file.exists()))

    monkeypatch.setattr(RemoteStore, "download", slow)

    def read_all(_: int) -> None:
        cask = opened(url, cache, 1)
        for number in [*range(len(cask)), *reversed(range(len(cask)))]:
            assert_same(cask.read(number), expected.read(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_all, range(4)))
    assert max(seen) <= limit


def test_what_a_dead_process_reserved_is_free_again(url: str, local: Path, tmp_path: Path) -> None:
    cask = opened(url, tmp_path, 1)
    shards = cache_of(cask).folder / "shards"
    shards.mkdir(parents=True)
    left_over = shards / f".tmp-{cache_of(cask).max_bytes}-dead"
    left_over.write_bytes(b"half a shard")
    assert_same(cask.read(0), Cask.open(local).read(0))
    assert not left_over.exists()


def test_waiting_for_room_ends_with_an_error(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitcask_schemas.cask.remote_cache._PATIENCE_SECONDS", 0.1)
    cask = opened(url, tmp_path, 1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with cache_of(cask).held(cask.entries[0]):
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    with pytest.raises(CaskError, match="which other processes use"):
        opened(url, tmp_path, 1).shard(1)
    done.set()
    thread.join()
    opened(url, tmp_path, 1).shard(1)


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
