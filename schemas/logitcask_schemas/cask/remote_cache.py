"""Shards of a remote cask on the local disk, up to a number of bytes, shared by all processes that name the folder.

Fetched shards are proved (size, SHA-256) before they get their name. The ones opened longest ago are removed first; a
process that has one mapped keeps it until it lets go, as with any removed file.

Whoever fetches a shard first reserves its bytes: an empty temporary file that announces the size in its name and stays
locked (flock) as long as its process lives. So however many processes fetch at once, the folder stays within its limit,
and what a dead one left behind is known to be nobody's.
"""

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from logitcask_schemas.cask.carriers.registry import carrier_of, shard_path
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, DocumentTable
from logitcask_schemas.cask.format.layout import SHARDS_NAME, TEMP_PREFIX
from logitcask_schemas.cask.format.manifest import ShardEntry
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError, CaskWriteError

_LOCKS_NAME: Final = "locks"
_TABLES_NAME: Final = "tables"
_POLL_SECONDS: Final = 0.02
_PATIENCE_SECONDS: Final = 600.0
"""How long to wait for room that other processes have reserved."""

Progress = Callable[[int], None]
"""Called with the bytes of one object that have come so far."""


class ShardCache:
    """Local copies of a cask's shards, under the same names as in a local cask."""

    def __init__(self, folder: Path, store: RemoteStore, max_bytes: int, index_version: str | None = None) -> None:
        """Nothing is made or fetched yet.

        Args:
            folder: Of this cask alone.
            store: Where the shards come from.
            max_bytes: Of all shards kept.
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

        Hold one at a time: with a small cache, a second one might wait for the room of the first.

        Raises:
            CaskError: The shard alone exceeds the cache, others leave no room in it for long, or the store fails.
            CaskNotFoundError: The store has lost it.
            CaskCorruptionError: What the store holds is not what was published.
            CaskWriteError: The local disk is full or broken.
        """
        path = shard_path(self.folder, entry)
        with self._lock(_stripe(path)):
            with _clear_errors(path):
                if not _has_size(path, entry.bytes):
                    self._download(entry, path, progress)
                os.utime(path)
            yield path

    def forget(self, entry: ShardEntry) -> None:
        """Remove the local copy of a shard."""
        path = shard_path(self.folder, entry)
        with self._lock(_stripe(path)):
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
        with self._lock("table"), _clear_errors(path):
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

    def _download(self, entry: ShardEntry, path: Path, progress: Progress | None) -> None:
        name = f"{SHARDS_NAME}/{entry.name}{carrier_of(entry).suffix}"
        with self._reserved(entry, path) as temporary:
            self.store.download(name, temporary, progress)
            with temporary.open("rb") as file:
                size, found = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if (size, found) != (entry.bytes, entry.sha256):
                raise CaskCorruptionError(
                    f"{self.store.url}/{name}: should have {entry.bytes} bytes with SHA-256 {entry.sha256}, came as "
                    f"{size} bytes with {found}. Export the shard again, or fetch again if the network is at fault."
                )
            with self._lock("room"):
                # Locked, so that nobody who adds up the folder meets it under neither name.
                temporary.replace(path)

    @contextmanager
    def _reserved(self, entry: ShardEntry, path: Path) -> Iterator[Path]:
        """A locked temporary file for a shard, made when there is room for it."""
        if entry.bytes > self.max_bytes:
            raise CaskError(
                f"{self.store.url}: shard {entry.name} has {entry.bytes} bytes, the cache may hold {self.max_bytes}; "
                "allow more"
            )
        temporary = path.parent / f"{TEMP_PREFIX}{entry.bytes}-{uuid.uuid4().hex}"
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (descriptor := self._reserve(entry.bytes, path, temporary)) is None:
            if time.monotonic() >= deadline:
                raise CaskError(
                    f"{self.folder}: waited {_PATIENCE_SECONDS:g} s for {entry.bytes} of {self.max_bytes} bytes, which "
                    "other processes use for what they fetch; allow more"
                )
            time.sleep(_POLL_SECONDS)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)

    def _reserve(self, size: int, path: Path, temporary: Path) -> int | None:
        """Remove the shards opened longest ago until one more fits; then make its file. None where it does not fit."""
        with self._lock("room"):
            kept = []
            free = self.max_bytes
            for file in path.parent.iterdir():
                if file.name.startswith(TEMP_PREFIX):
                    free -= _reserved_bytes(file)
                elif (status := _status(file)) is not None:
                    kept.append((status.st_mtime, status.st_size, file))
                    free -= status.st_size
            for _, bytes_of_file, file in sorted(kept):
                if free >= size:
                    break
                if self._evicted(file, path):
                    free += bytes_of_file
            if free < size:
                return None
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return descriptor

    def _evicted(self, file: Path, wanted: Path) -> bool:
        """Remove a shard unless somebody is about to open it; `wanted` is the one whose lock is ours."""
        if _stripe(file) != _stripe(wanted):
            descriptor = self._open_lock(_stripe(file))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)
            except BlockingIOError:
                return False
            finally:
                os.close(descriptor)
        else:
            file.unlink(missing_ok=True)
        return True

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        descriptor = self._open_lock(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _open_lock(self, name: str) -> int:
        path = self.folder / _LOCKS_NAME / name
        with _clear_errors(path):
            for folder in (path.parent, self.folder / SHARDS_NAME):
                folder.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _stripe(path: Path) -> str:
    """Name of the lock of a shard: 256 for all of them, not a file for each."""
    return path.name[:2]


def _reserved_bytes(temporary: Path) -> int:
    """What a temporary file announces; removes it where its process is dead."""
    try:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        announced = temporary.name.removeprefix(TEMP_PREFIX).partition("-")[0]
        return int(announced) if announced.isdecimal() else 0
    finally:
        os.close(descriptor)
    temporary.unlink(missing_ok=True)
    return 0


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about the local folder into ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CaskError):
            raise
        raise CaskWriteError(
            f"{path}: cannot keep this in the cache: {error.strerror or error}. Free some space, or name another "
            "folder for the cache.",
            error.errno,
        ) from error


def _status(path: Path) -> os.stat_result | None:
    """None where another process was faster to remove it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _has_size(path: Path, size: int) -> bool:
    status = _status(path)
    return status is not None and status.st_size == size
