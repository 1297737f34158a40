"""Shards of a remote cask on the local disk, up to a number of bytes, shared by all processes that name the folder.

Fetched shards are proved (size, SHA-256) before they get their name. The ones opened longest ago are removed first; a
process that has one mapped keeps it until it lets go, as with any removed file.

Every shard has a lock, which whoever fetches or opens it holds. Each process makes room before it fetches, then fetches
one shard. So processes that fetch at the same time may exceed the limit by one shard each, until the next one makes
room.
"""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, DocumentTable
from logitcask_schemas.cask.format.layout import SHARDS_NAME, TEMP_PREFIX
from logitcask_schemas.cask.format.shard_entry import HintsFile, ShardEntry
from logitcask_schemas.cask.hint_file import hints_path
from logitcask_schemas.cask.storage.files import writes_explained
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError

_LOCKS_NAME: Final = "locks"
_TABLES_NAME: Final = "tables"
_POLL_SECONDS: Final = 0.02

Progress = Callable[[int], None]
"""Called with the bytes of one object that have come so far."""


class ShardCache:
    """Local copies of a cask's shards, under the same names as in a local cask."""

    def __init__(self, folder: Path, store: RemoteStore, max_bytes: int, index_version: str | None = None) -> None:
        """Nothing is made or fetched yet.

        Args:
            folder: Of this cask alone.
            store: Where the shards come from.
            max_bytes: Of all shards kept; exceeded for a while by one shard for each process that fetches.
            index_version: Of the store's index, to which its table of documents belongs; None where it has none.
        """
        self.folder = folder
        self.store = store
        self.max_bytes = max_bytes
        self.index_version = index_version

    def limited(self, max_bytes: int) -> "ShardCache":
        """The same cache with another limit."""
        return ShardCache(self.folder, self.store, max_bytes, self.index_version)

    @contextmanager
    def held(self, entry: ShardEntry, progress: Progress | None = None) -> Iterator[Path]:
        """The local copy of a shard, downloaded where it is not there yet; nobody removes it while the context lasts.

        Raises:
            CaskError: The shard alone exceeds the cache, or the store fails.
            CaskNotFoundError: The store has lost it.
            CaskCorruptionError: What the store holds is not what was published.
            CaskWriteError: The local disk is full or broken.
        """
        with self._held(shard_path(self.folder, entry), entry, progress) as path:
            yield path

    @contextmanager
    def held_hints(self, entry: ShardEntry) -> Iterator[Path]:
        """As `held`, the file of hints beside a shard; its entry has one."""
        assert entry.hints is not None
        with self._held(hints_path(self.folder, entry), entry.hints, None) as path:
            yield path

    @contextmanager
    def _held(self, path: Path, file: ShardEntry | HintsFile, progress: Progress | None) -> Iterator[Path]:
        with self._lock(path.name):
            with _keeping_explained(path):
                if not _has_size(path, file.bytes):
                    self._download(file, path, progress)
                os.utime(path)
            yield path

    def forget(self, entry: ShardEntry) -> None:
        """Remove the local copies of a shard and of the hints beside it."""
        for path in (shard_path(self.folder, entry), hints_path(self.folder, entry)):
            with self._lock(path.name):
                path.unlink(missing_ok=True)

    def table(self) -> DocumentTable | None:
        """The table of documents, fetched where the cache has not that of this index; None where the store has none.

        Raises:
            CaskError, CaskCorruptionError, CaskWriteError: As `held`.
        """
        if self.index_version is None:
            return None
        folder = self.folder / _TABLES_NAME
        path = folder / f"{self.index_version}.bin"
        with self._lock("table"), _keeping_explained(path):
            if path.exists():
                return DocumentTable(path)
            folder.mkdir(exist_ok=True)
            for other in folder.iterdir():
                other.unlink(missing_ok=True)
            temporary = folder / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
            try:
                self.store.download(DOCUMENTS_NAME, temporary)
                DocumentTable(temporary).verify()
                temporary.replace(path)
            except CaskNotFoundError:
                return None
            except CaskCorruptionError as error:
                # What is wrong lies in the store, not here.
                url = f"{self.store.url}/{DOCUMENTS_NAME}"
                raise CaskCorruptionError(str(error).replace(str(temporary), url)) from error
            finally:
                temporary.unlink(missing_ok=True)
            return DocumentTable(path)

    def _download(self, entry: ShardEntry | HintsFile, path: Path, progress: Progress | None) -> None:
        if entry.bytes > self.max_bytes:
            raise CaskError(
                f"{self.store.url}: {path.name} has {entry.bytes} bytes, the cache may hold {self.max_bytes}; "
                "allow more"
            )
        self._make_room(entry.bytes, path)
        name, temporary = f"{SHARDS_NAME}/{path.name}", path.with_name(TEMP_PREFIX + path.name)
        try:
            self.store.download(name, temporary, progress)
            with temporary.open("rb") as file:
                size, sha256 = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if (size, sha256) != (entry.bytes, entry.sha256):
                raise CaskCorruptionError(
                    f"{self.store.url}/{name}: should have {entry.bytes} bytes with SHA-256 {entry.sha256}, came as "
                    f"{size} bytes with {sha256}. Export the shard again, or fetch again if the network is at fault."
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int, path: Path) -> None:
        """Remove the shards opened longest ago until one more of this size fits, and what dead processes left."""
        files = [(file, status) for file in path.parent.iterdir() if (status := _status(file)) is not None]
        kept_bytes = sum(status.st_size for _, status in files)
        for file, status in sorted(files, key=lambda listed: listed[1].st_mtime):
            is_temporary = file.name.startswith(TEMP_PREFIX)
            if (is_temporary or kept_bytes + size > self.max_bytes) and self._removed(file, path):
                kept_bytes -= status.st_size

    def _removed(self, file: Path, own: Path) -> bool:
        """Remove a shard, or the beginning of one, unless somebody fetches or opens it; the lock of `own` is held."""
        shard = file.name.removeprefix(TEMP_PREFIX)
        if shard == own.name:
            file.unlink(missing_ok=True)
            return True
        with self._lock(shard, wait=False) as acquired:
            if acquired:
                file.unlink(missing_ok=True)
                # Whoever waits for this very lock file notices that it lost its name, and locks a new one.
                self._lock_path(shard).unlink(missing_ok=True)
        return acquired

    @contextmanager
    def _lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock of this cache; yields False where somebody else has it and this one does not wait."""
        # Importing it takes 30 ms, which local casks need not pay.
        from filelock import FileLock, Timeout

        path, acquired = self._lock_path(name), True
        lock = FileLock(path, thread_local=False, blocking=wait, poll_interval=_POLL_SECONDS, fallback_to_soft=False)
        with _keeping_explained(path):
            for folder in (path.parent, self.folder / SHARDS_NAME):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                acquired = False
        try:
            yield acquired
        finally:
            lock.release()

    def _lock_path(self, name: str) -> Path:
        return self.folder / _LOCKS_NAME / f"{name}.lock"


def _keeping_explained(path: Path) -> AbstractContextManager[None]:
    advice = "Free some space, or name another folder for the cache"
    return writes_explained(f"{path}: cannot keep this in the cache", advice)


def _status(path: Path) -> os.stat_result | None:
    """None where another process was faster to remove it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _has_size(path: Path, size: int) -> bool:
    status = _status(path)
    return status is not None and status.st_size == size
