"""What an object store keeps of a cask that no reader sees, and what readers miss: a list, for whoever cleans up.

Nothing is removed. An object without an entry may be what a writer is about to publish; its age tells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import StoreDirectory, entry_file, entry_names, read_listing, read_manifest
from logitcask_schemas.cask.format.layout import SHARDS_NAME
from logitcask_schemas.cask.storage.object_store import StoredObject
from logitcask_schemas.cask.storage.shared_store import SharedStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """Of one cask in a store."""

    unnamed: list[StoredObject] = field(default_factory=list)
    """Old enough objects among the shards that no entry names."""
    recent: list[StoredObject] = field(default_factory=list)
    """The others: a writer may be about to publish them."""
    uploads: list[StoredObject] = field(default_factory=list)
    """Old enough uploads in parts that were not finished; the store keeps the parts."""
    incomplete: list[str] = field(default_factory=list)
    """A sentence for each object that an entry names and that is missing, or of another size."""


def leftovers(
    url: str, older_than: timedelta, *, now: datetime | None = None, options: Mapping[str, Any] | None = None
) -> Leftovers:
    """List them; small files are read, shards are not.

    Args:
        url: The cask's folder.
        older_than: Age from which on an object is no unfinished work; longer than any shard takes to be sent.
        now: The time; None for that of the clock.
        options: See `RemoteStore`.

    Raises:
        CaskNotFoundError, CaskCorruptionError: There is no cask, or manifest, index or an entry is damaged.
        StoreError: The store does not answer.
    """
    store = SharedStore(url, options)
    directory = StoreDirectory(store=store)
    read_manifest(directory)
    # Entries before objects: what an entry names was there before it.
    entries, objects = read_listing(directory).entries, {file.name: file for file in store.objects(SHARDS_NAME)}
    left, named = Leftovers(), set[str]()
    for entry in entries:
        files = {shard_path(Path(), entry).name: entry.bytes}
        if entry.hints is not None:
            files[entry.hints_name] = entry.hints.bytes
        named |= {Path(entry_file(entry.name)).name, *files}
        for name, size in files.items():
            stored = objects.get(name)
            if stored is None:
                left.incomplete.append(f"{store.url}/{SHARDS_NAME}/{name}: its entry is there, the object is missing")
            elif stored.bytes != size:
                left.incomplete.append(
                    f"{store.url}/{SHARDS_NAME}/{name}: should have {size} bytes, it has {stored.bytes}"
                )
    published_since = tuple(f"{name}." for name in {*entry_names(objects)} - {entry.name for entry in entries})
    limit = (now or datetime.now(UTC)) - older_than
    for file in objects.values():
        if file.name not in named and not file.name.startswith(published_since):
            (left.unnamed if _is_older(file, limit) else left.recent).append(file)
    left.uploads.extend(file for file in store.unfinished_uploads(SHARDS_NAME) if _is_older(file, limit))
    return left


def _is_older(file: StoredObject, limit: datetime) -> bool:
    return file.modified is not None and file.modified < limit
