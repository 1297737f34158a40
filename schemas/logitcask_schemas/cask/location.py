"""A cask in an object store, read through a local cache: to train from, to import from, to look into.

Manifest and index are fetched when it is opened; the table of documents when somebody asks for ids or lengths; shards
when they are first needed. Only the last two are kept, so looking at a cask's figures leaves nothing on the disk.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from logitcask_schemas.cask.directory import parse_entry, parse_index, parse_manifest, require_identity
from logitcask_schemas.cask.documents import DocumentTable
from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME, MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import CaskManifest, ShardEntry
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.remote_cache import Progress, ShardCache
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import CaskNotFoundError, IdentityMismatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """A cask as it was when it was looked at."""

    manifest: CaskManifest
    entries: list[ShardEntry]
    """Ascending by name."""
    index_version: str | None
    """Digest of the index; None where there is none."""


def take_inventory(store: RemoteStore) -> Inventory:
    """Read it, and believe it: whatever is damaged is an error (`remote_verify` reports it instead).

    Raises:
        CaskNotFoundError: There is no cask.
        CaskCorruptionError: Manifest, index or an entry is damaged, or a shard is foreign.
        CaskError: The store does not answer.
    """
    manifest = parse_manifest(read_manifest_of(store), where=f"{store.url}/{MANIFEST_NAME}")
    # The index after the listing: what is folded into it in between is then in both, never in neither.
    names = entry_names_of(store.sizes(SHARDS_NAME))
    try:
        index = store.read(INDEX_NAME)
    except CaskNotFoundError:
        version, entries = None, dict[str, ShardEntry]()
    else:
        version = hashlib.sha256(index).hexdigest()[:16]
        entries = parse_index(index, where=f"{store.url}/{INDEX_NAME}")
    loose = {f"{SHARDS_NAME}/{name}{ENTRY_SUFFIX}": name for name in names if name not in entries}
    for path, content in store.read_all(list(loose)).items():
        entries[loose[path]] = parse_entry(content, where=f"{store.url}/{path}", name=loose[path])
    require_identity(store.url, entries.values(), manifest)
    return Inventory(
        manifest=manifest, entries=sorted(entries.values(), key=lambda entry: entry.name), index_version=version
    )


def read_manifest_of(store: RemoteStore) -> bytes:
    """The bytes of a store's cask.json; CaskNotFoundError where there is none."""
    try:
        return store.read(MANIFEST_NAME)
    except CaskNotFoundError as error:
        raise CaskNotFoundError(
            f"{store.url}: not a cask (it has no {MANIFEST_NAME}). A cask is the folder that holds {MANIFEST_NAME}; an "
            "export that has not finished has none yet."
        ) from error


def entry_names_of(sizes: dict[str, int]) -> list[str]:
    """Names of the shards that have an entry, among the names of a folder of shards."""
    return sorted(name.removesuffix(ENTRY_SUFFIX) for name in sizes if name.endswith(ENTRY_SUFFIX) and name[0] != ".")


CACHE_BYTES: Final = 32 << 30


class RemoteCask(Cask):
    """As `Cask`; use `Cask.open` with a URL."""

    _files_are_local = False

    def __init__(self, path: Path, manifest: CaskManifest, entries: list[ShardEntry], cache: ShardCache) -> None:
        """Use `open_url`."""
        super().__init__(path, manifest, entries)
        self.cache = cache

    @classmethod
    def open_url(
        cls,
        url: str,
        *,
        cache: Path,
        cache_bytes: int = CACHE_BYTES,
        tokenizer_fingerprint: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Open a cask of an object store.

        Args:
            url: Its folder there.
            cache: Local folder for shards; casks may share it. It is made when the first one is fetched.
            cache_bytes: Most bytes of this cask's shards to keep there. Each process also keeps shards of at most so
                many bytes mapped, among them some that others have removed.
            tokenizer_fingerprint: See `Cask.open`.
            options: See `RemoteStore`.

        Raises:
            CaskNotFoundError, CaskCorruptionError, IdentityMismatchError: See `Cask.open`.
            CaskError: The store does not answer.
            MissingExtraError: The client of this kind of store is not installed.
        """
        store = RemoteStore(url, options)
        folder = Path(cache) / hashlib.sha256(store.url.encode()).hexdigest()[:16]
        found = take_inventory(store)
        stored = found.manifest.teacher.tokenizer_fingerprint
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != stored:
            raise IdentityMismatchError(
                f"{store.url}: tokenizer_fingerprint: {stored!r} in the cask, {tokenizer_fingerprint!r} offered. The "
                f"ids of this cask mean other tokens there; use the tokenizer of {found.manifest.teacher.model!r}."
            )
        shards = ShardCache(folder, store, cache_bytes, found.index_version)
        return cls(folder, found.manifest, found.entries, shards)

    def shard(self, number: int) -> Shard:
        """See `Cask.shard`; downloads it where the cache lacks it."""
        if number in self._open or not 0 <= number < len(self.entries):
            return super().shard(number)
        return self.fetch(number)

    def fetch(self, number: int, progress: Progress | None = None) -> Shard:
        """As `shard`, telling how much of it has come."""
        entry = self.entries[number]
        if number not in self._open:
            self._let_go(entry.bytes)
        with self.cache.held(entry, progress):
            return super().shard(number)

    def forget(self, number: int) -> None:
        """Drop the local copy of a shard, so that it is fetched anew: the copy may be damaged."""
        self._open.pop(number, None)
        self.cache.forget(self.entries[number])

    def _let_go(self, wanted: int) -> None:
        """Unmap what was opened first until `wanted` more bytes are within the cache's limit."""
        mapped = sum(self.entries[number].bytes for number in self._open)
        for number in list(self._open):
            if mapped + wanted <= self.cache.max_bytes:
                return
            self._open.pop(number, None)
            mapped -= self.entries[number].bytes

    def _any_table(self) -> DocumentTable | None:
        if not self._looked_for_table:
            self._table, self._looked_for_table = self.cache.table(), True
        return self._table

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["manifest"], state["entries"], state["cache"])  # type: ignore[misc]


def place_of(cask: Cask) -> str:
    """Where a cask is, for people: its folder, or its URL."""
    return cask.cache.store.url if isinstance(cask, RemoteCask) else str(cask.path)
