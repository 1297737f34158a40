"""Where a cask lies: a local folder, or an object store that is read through a local cache.

A `Cask` asks its location for the listing, for the table of documents and for the files of shards, and knows nothing
else of it. Of a store, manifest and index are fetched when the cask is opened; the table, and ids and lengths of shards
that it does not list, when somebody asks for them; shards when they are first needed. Table and shards alone are kept,
so looking at a cask's figures leaves nothing on the disk.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import (
    Directory,
    Listing,
    LocalDirectory,
    OnDamage,
    StoreDirectory,
    read_listing,
    refuse_damage,
)
from logitcask_schemas.cask.documents import DocumentTable, ShardDocuments
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_file import hints_path, require_hint_file
from logitcask_schemas.cask.opening import open_documents, open_shard, require_shards
from logitcask_schemas.cask.remote_cache import Progress, ShardCache
from logitcask_schemas.cask.storage.object_store import RemoteStore, is_url
from logitcask_schemas.cask.store_documents import read_documents
from logitcask_schemas.errors import CaskError

CACHE_BYTES: Final = 32 << 30
"""Of a cask's shards that are kept of a store, where nobody says otherwise."""


class Location(Protocol):
    """What a cask needs of the place where it lies. Errors as `Cask.open`, `Cask.shard` and `Cask.document_ids`."""

    @property
    def directory(self) -> Directory:
        """The manifest and the list of shards, unread."""
        ...

    @property
    def folder(self) -> Path:
        """The local folder in which shards are opened."""
        ...

    @property
    def max_mapped_bytes(self) -> int | None:
        """Of all shards that a process keeps mapped; None for no limit."""
        ...

    def read_listing(self, damaged: OnDamage = refuse_damage) -> Listing:
        """Index and entries, as `directory.read_listing` does."""
        ...

    def read_table(self, *, doubted: bool = False) -> DocumentTable | None:
        """The table of documents, or None; `doubted`: as `DocumentTable.open`."""
        ...

    def read_documents(self, entries: Iterable[ShardEntry], layout: RecordLayout) -> dict[str, ShardDocuments]:
        """By name of the shard, ids and lengths of its documents."""
        ...

    def require_shards(self, entries: Iterable[ShardEntry]) -> None:
        """Require of shards that should be there now that they are."""
        ...

    def require_hints(self, entries: Iterable[ShardEntry]) -> None:
        """Require of files of hints that should be there now that they are; these entries have some."""
        ...

    def held(self, entry: ShardEntry, progress: Progress | None = None) -> AbstractContextManager[Path]:
        """The local file of a shard, which stays while the context lasts; `progress` is told how much has come."""
        ...

    def held_hints(self, entry: ShardEntry) -> AbstractContextManager[Path]:
        """The local file of hints beside a shard, which stays while the context lasts; its entry has one."""
        ...

    def forget(self, entry: ShardEntry) -> bool:
        """Drop a copy that may be damaged; whether there was one, and another can be had."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFolder:
    """A cask in a local folder."""

    folder: Path
    max_mapped_bytes: None = None

    @property
    def directory(self) -> LocalDirectory:
        """The manifest and the list of shards, unread."""
        return LocalDirectory(path=self.folder)

    def read_listing(self, damaged: OnDamage = refuse_damage) -> Listing:
        """Index and entries, as they are now."""
        return read_listing(self.directory, damaged)

    def read_table(self, *, doubted: bool = False) -> DocumentTable | None:
        """The table of documents; None where there is none yet."""
        return DocumentTable.open(self.folder, doubted=doubted)

    def read_documents(self, entries: Iterable[ShardEntry], layout: RecordLayout) -> dict[str, ShardDocuments]:
        """From the shards' files, one after another."""
        return {entry.name: open_documents(self.folder, entry, layout) for entry in entries}

    def require_shards(self, entries: Iterable[ShardEntry]) -> None:
        """Require the files of these shards to be there."""
        require_shards(self.folder, entries)

    def require_hints(self, entries: Iterable[ShardEntry]) -> None:
        """Require the files of hints beside these shards to be there."""
        for entry in entries:
            require_hint_file(self.folder, entry)

    @contextmanager
    def held(self, entry: ShardEntry, progress: Progress | None = None) -> Iterator[Path]:
        """The file of a shard, which stays by itself."""
        yield shard_path(self.folder, entry)

    @contextmanager
    def held_hints(self, entry: ShardEntry) -> Iterator[Path]:
        """The file of hints beside a shard, which stays by itself."""
        yield hints_path(self.folder, entry)

    def forget(self, entry: ShardEntry) -> bool:
        """False: there is no other copy."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedStore:
    """A cask in an object store, with a local cache of its shards."""

    cache: ShardCache

    @property
    def directory(self) -> StoreDirectory:
        """The manifest and the list of shards in the store, unread."""
        return StoreDirectory(store=self.cache.store)

    @property
    def folder(self) -> Path:
        """The folder of the cache."""
        return self.cache.folder

    @property
    def max_mapped_bytes(self) -> int | None:
        """As much as the cache may hold, among it shards that others have removed there."""
        return self.cache.max_bytes

    def read_listing(self, damaged: OnDamage = refuse_damage) -> Listing:
        """Index and entries; from now on the table is the one that belongs to the index that was read."""
        listing = read_listing(self.directory, damaged)
        self.cache.index_version = None if listing.index is None else hashlib.sha256(listing.index).hexdigest()[:16]
        return listing

    def read_table(self, *, doubted: bool = False) -> DocumentTable | None:
        """The table of documents, fetched and proved, or None."""
        return self.cache.table()

    def read_documents(self, entries: Iterable[ShardEntry], layout: RecordLayout) -> dict[str, ShardDocuments]:
        """From parts of Arrow shards, many at a time; others are fetched, and kept."""

        def kept(entry: ShardEntry) -> ShardDocuments:
            with self.held(entry):
                return open_shard(self.folder, entry, layout).documents

        return read_documents(self.cache.store, entries, layout, kept)

    def require_shards(self, entries: Iterable[ShardEntry]) -> None:
        """Require nothing: shards are fetched when they are needed."""

    def require_hints(self, entries: Iterable[ShardEntry]) -> None:
        """Require nothing, as of shards."""

    def held(self, entry: ShardEntry, progress: Progress | None = None) -> AbstractContextManager[Path]:
        """The copy of a shard in the cache, fetched where it is not there."""
        return self.cache.held(entry, progress)

    def held_hints(self, entry: ShardEntry) -> AbstractContextManager[Path]:
        """The copy of the file of hints in the cache, fetched where it is not there."""
        return self.cache.held_hints(entry)

    def forget(self, entry: ShardEntry) -> bool:
        """Drop the copy in the cache; True, as the store has another."""
        self.cache.forget(entry)
        return True

    def limited(self, max_bytes: int) -> "CachedStore":
        """The same with another limit of the cache."""
        return CachedStore(cache=self.cache.limited(max_bytes))


def location_of(
    place: Path | str,
    *,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> LocalFolder | CachedStore:
    """The location that a folder or URL names; nothing is read.

    Args:
        place: Folder, or URL of an object store ("s3://bucket/folder"; needs the extra `remote`).
        cache: For a URL: local folder for shards; casks may share it. It is made when the first one is fetched.
        cache_bytes: For a URL: bytes of this cask's shards to keep there at most; None: `CACHE_BYTES`.
        options: For a URL: see `RemoteStore`.

    Raises:
        CaskError: A URL without a cache.
        MissingExtraError: The client of this kind of store is not installed.
    """
    if not is_url(place):
        return LocalFolder(folder=Path(place))
    if cache is None:
        raise CaskError(
            f"{place}: a cask in an object store is read through a local folder; name one with cache=, in commands "
            "with --cache DIR"
        )
    store = RemoteStore(str(place), options)
    folder = Path(cache) / hashlib.sha256(store.url.encode()).hexdigest()[:16]
    return CachedStore(cache=ShardCache(folder, store, cache_bytes or CACHE_BYTES, None))
