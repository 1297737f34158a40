"""Shards of a remote cask on the local disk, up to a number of bytes, shared by all processes that name the folder.

Fetched shards are proved (size, SHA-256) before they get their name. The ones opened longest ago are removed first; a
process that has one mapped keeps it until it lets go, as with any removed file.
"""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from logitcask_schemas.cask.carriers import carrier_of, shard_path
from logitcask_schemas.cask.layout import SHARDS_NAME, TEMP_PREFIX
from logitcask_schemas.cask.remote_store import RemoteStore
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskWriteError
from logitcask_schemas.manifest import ShardEntry

_LOCKS_NAME: Final = "locks"
_ABANDONED_SECONDS: Final = 3600.0
"""A download that nobody has written to for so long belongs to a process that died."""


class ShardCache:
    """Local copies of a cask's shards, under the same names as in a local cask."""

    def __init__(self, folder: Path, store: RemoteStore, max_bytes: int) -> None:
        """Make the folders.

        Args:
            folder: Of this cask alone.
            store: Where the shards come from.
            max_bytes: Of all shards kept.
        """
        self.folder = folder
        self.store = store
        self.max_bytes = max_bytes
        for name in (SHARDS_NAME, _LOCKS_NAME):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def limited(self, max_bytes: int) -> "ShardCache":
        """The same cache with another limit."""
        return ShardCache(self.folder, self.store, max_bytes)

    def fetch(self, entry: ShardEntry) -> Path:
        """The local copy of a shard, downloaded where it is not there yet.

        Raises:
            CaskError: The shard alone exceeds the cache, or the store fails.
            CaskNotFoundError: The store has lost it.
            CaskCorruptionError: What the store holds is not what was published.
            CaskWriteError: The local disk is full or broken.
        """
        path = shard_path(self.folder, entry)
        with self._lock(entry.name[:2]):
            if not _has_size(path, entry.bytes):
                self._make_room(entry)
                self._download(entry, path)
            os.utime(path)
        return path

    def _download(self, entry: ShardEntry, path: Path) -> None:
        temporary = path.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
        name = f"{SHARDS_NAME}/{entry.name}{carrier_of(entry).suffix}"
        try:
            self.store.download(name, temporary)
            with temporary.open("rb") as file:
                size, found = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if (size, found) != (entry.bytes, entry.sha256):
                raise CaskCorruptionError(
                    f"{self.store.url}/{name}: should have {entry.bytes} bytes with SHA-256 {entry.sha256}, came as "
                    f"{size} bytes with {found}. Export the shard again, or fetch again if the network is at fault."
                )
            temporary.replace(path)
        except OSError as error:
            if isinstance(error, CaskError):
                raise
            raise CaskWriteError(f"{path}: cannot keep the shard: {error.strerror}", error.errno) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, entry: ShardEntry) -> None:
        """Remove the shards opened longest ago until one more fits."""
        if entry.bytes > self.max_bytes:
            raise CaskError(
                f"{self.store.url}: shard {entry.name} has {entry.bytes} bytes, the cache may hold {self.max_bytes}; "
                "allow more"
            )
        with self._lock("room"):
            kept, now = [], 0.0
            for file in (self.folder / SHARDS_NAME).iterdir():
                if file.suffix != ".json" and (status := _status(file)) is not None:
                    kept.append((status.st_mtime, status.st_size, file))
                    now = max(now, status.st_mtime)
            free = self.max_bytes - sum(size for _, size, _ in kept)
            for modified, size, file in sorted(kept):
                busy = file.name.startswith(TEMP_PREFIX) and now - modified < _ABANDONED_SECONDS
                if free >= entry.bytes:
                    return
                if not busy:
                    file.unlink(missing_ok=True)
                    free += size

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        descriptor = os.open(self.folder / _LOCKS_NAME / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _status(path: Path) -> os.stat_result | None:
    """None where another process was faster to remove it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _has_size(path: Path, size: int) -> bool:
    status = _status(path)
    return status is not None and status.st_size == size
