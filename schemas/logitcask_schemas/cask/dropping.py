"""Freeing what a cask's hints take, in a folder or in an object store: the records stay.

First every entry that names a file of hints is replaced by one that does not, then the index, then the files lose their
names. After a crash at any instant a shard has its hints whole or none; a second run finishes the first.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.cask.directory import (
    LocalDirectory,
    StoreDirectory,
    entry_file,
    read_listing,
    read_manifest,
    write_entry,
    write_index,
)
from logitcask_schemas.cask.format.layout import INDEX_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import entry_bytes, index_bytes
from logitcask_schemas.cask.hint_file import HINTS_SUFFIX
from logitcask_schemas.cask.publication import sweep
from logitcask_schemas.cask.storage.files import FileOperations, LocalFiles, clear_errors
from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import HintsDroppedError

_LOCK_TIMEOUT_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedHints:
    """What was freed."""

    shards: int
    """That had hints."""
    bytes: int
    """Of all files that were removed."""


def drop_store_hints(url: str, options: Mapping[str, Any] | None = None) -> DroppedHints:
    """As `drop_hints`, in an object store, where writers may be at work meanwhile.

    What they publish after the cask was listed keeps its hints; dropping again takes them too.

    Args:
        url: The cask's folder.
        options: See `RemoteStore`.

    Raises:
        CaskNotFoundError, CaskCorruptionError: There is no cask, or its manifest, index or an entry is damaged.
        HintsDroppedError: Its capture spec has no hints.
        StoreError: The store does not answer, or refuses; run again when it does.
    """
    store = RemoteStore(url, options)
    directory = StoreDirectory(store=store)
    if read_manifest(directory).capture.hints is None:
        raise HintsDroppedError(f"{url}: was captured without hints: there is nothing to drop")
    listing = read_listing(directory)
    entries = {entry.name: entry.model_copy(update={"hints": None}) for entry in listing.entries}
    named = [entry.name for entry in listing.entries if entry.hints is not None]
    for name in named:
        store.write(entry_file(name), entry_bytes(entries[name]))
    if named:
        # Also where there was none: so a writer that is making one, of entries as they were, finds it changed.
        store.write(INDEX_NAME, index_bytes(entries.values()))
    # Of a shard that is not listed, somebody may be about to publish the entry.
    files = [file for file in store.objects(SHARDS_NAME) if file.name.removesuffix(HINTS_SUFFIX) in entries]
    for file in files:
        store.delete(f"{SHARDS_NAME}/{file.name}")
    return DroppedHints(shards=len(named), bytes=sum(file.bytes for file in files))


def drop_hints(
    path: Path, *, files: FileOperations | None = None, lock_timeout_seconds: float = _LOCK_TIMEOUT_SECONDS
) -> DroppedHints:
    """Remove the hints of every shard of a cask; readers that have them open go on reading.

    Args:
        path: The cask's folder.
        files: The file system, for tests.
        lock_timeout_seconds: How long to wait for a writer.

    Raises:
        CaskNotFoundError, CaskCorruptionError: There is no cask, or its manifest, index or an entry is damaged.
        HintsDroppedError: Its capture spec has no hints.
        CaskLockedError: A writer did not finish in time.
        CaskWriteError: The file system refuses; run again when it does not.
    """
    files = files or LocalFiles()
    if read_manifest(LocalDirectory(path=path)).capture.hints is None:
        raise HintsDroppedError(f"{path}: was captured without hints: there is nothing to drop")
    with writers_lock(path, holder=f"drop-{secrets.token_hex(8)}", timeout_seconds=lock_timeout_seconds):
        listing = read_listing(LocalDirectory(path=path))
        entries = {entry.name: entry.model_copy(update={"hints": None}) for entry in listing.entries}
        named = [entry.name for entry in listing.entries if entry.hints is not None]
        for name in named:
            write_entry(files, path, entries[name])
        if named and (path / INDEX_NAME).exists():
            write_index(files, path, entries.values())
        # Also those that a drop which was cut short left without an entry that names them.
        sizes = {file: file.stat().st_size for file in (path / SHARDS_NAME).glob(f"*{HINTS_SUFFIX}")}
        freed = sum(sizes.get(file, 0) for file in sweep(files, path, entries.values()))
        with clear_errors(path):
            files.sync_directory(path / SHARDS_NAME)
    return DroppedHints(shards=len(named), bytes=freed)
