"""A cask in an object store, read through a local cache: to train from, to import from, to look into.

Manifest, index, table of documents and entries are fetched when it is opened; shards when they are first needed. The
cache folder is laid out like a cask that lacks most of its shards, so whatever reads a local cask reads this one.
"""

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from logitcask_schemas.cask.document_table import DOCUMENTS_NAME
from logitcask_schemas.cask.files import LocalFiles, publish_file
from logitcask_schemas.cask.layout import ENTRY_SUFFIX, INDEX_NAME, MANIFEST_NAME, SHARDS_NAME, TEMP_PREFIX
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.remote_cache import ShardCache
from logitcask_schemas.cask.remote_store import RemoteStore
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.errors import CaskError, CaskNotFoundError, CaskWriteError
from logitcask_schemas.manifest import CaskManifest, ShardEntry

CACHE_BYTES: Final = 32 << 30
_ATTEMPTS: Final = 3
"""Another process may make room for its own shard just after ours was fetched."""


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
            cache: Local folder for shards; casks may share it.
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
        try:
            shards = ShardCache(folder, store, cache_bytes)
            _fetch_documents(store, folder)
        except OSError as error:
            if isinstance(error, CaskError):
                raise
            raise CaskWriteError(f"{folder}: cannot make the cache: {error.strerror}", error.errno) from error
        local = Cask.open(folder, tokenizer_fingerprint=tokenizer_fingerprint)
        return cls(folder, local.manifest, local.entries, shards)

    def shard(self, number: int) -> Shard:
        """See `Cask.shard`; downloads it where the cache lacks it."""
        if number in self._open or not 0 <= number < len(self.entries):
            return super().shard(number)
        entry = self.entries[number]
        self._let_go(entry.bytes)
        for _ in range(_ATTEMPTS - 1):
            self.cache.fetch(entry)
            try:
                return super().shard(number)
            except CaskNotFoundError:
                continue
        self.cache.fetch(entry)
        return super().shard(number)

    def _let_go(self, wanted: int) -> None:
        """Unmap what was opened first until `wanted` more bytes are within the cache's limit."""
        mapped = sum(self.entries[number].bytes for number in self._open)
        for number in list(self._open):
            if mapped + wanted <= self.cache.max_bytes:
                return
            self._open.pop(number, None)
            mapped -= self.entries[number].bytes

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "store": self.cache.store, "max_bytes": self.cache.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        cache = ShardCache(state["path"], state["store"], state["max_bytes"])
        self.__init__(state["path"], state["manifest"], state["entries"], cache)  # type: ignore[misc]


def _fetch_documents(store: RemoteStore, folder: Path) -> None:
    """Bring manifest, index and entry files of the cache to the store's state."""
    try:
        manifest = store.read(MANIFEST_NAME)
    except CaskNotFoundError as error:
        raise CaskNotFoundError(
            f"{store.url}: not a cask (it has no {MANIFEST_NAME}). A cask is the folder that holds {MANIFEST_NAME}."
        ) from error
    _keep(folder, MANIFEST_NAME, manifest)
    listing = store.sizes(SHARDS_NAME)
    index = _fetch_index(store, folder)
    entries = {name for name in listing if name.endswith(ENTRY_SUFFIX)}
    for path in (folder / SHARDS_NAME).glob(f"[!.]*{ENTRY_SUFFIX}"):
        if path.name not in entries:
            path.unlink(missing_ok=True)
    for name in entries:
        stem = name.removesuffix(ENTRY_SUFFIX)
        # The index repeats the entries: only those that it does not have yet cost a request.
        if stem.encode() not in index:
            _keep(folder / SHARDS_NAME, name, store.read(f"{SHARDS_NAME}/{name}"))


def _fetch_index(store: RemoteStore, folder: Path) -> bytes:
    """Bring index and table of documents to the store's state; the bytes of the index, none where there is none."""
    try:
        content = store.read(INDEX_NAME)
    except CaskNotFoundError:
        for path in (folder / INDEX_NAME, folder / DOCUMENTS_NAME):
            path.unlink(missing_ok=True)
        return b""
    known = folder / INDEX_NAME
    if not (folder / DOCUMENTS_NAME).exists() or not known.exists() or known.read_bytes() != content:
        # The table is written with the index: while that stays, it has not changed either.
        temporary = folder / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
        try:
            store.download(DOCUMENTS_NAME, temporary)
            temporary.replace(folder / DOCUMENTS_NAME)
        except CaskNotFoundError:
            (folder / DOCUMENTS_NAME).unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)
        _keep(folder, INDEX_NAME, content)
    return content


def _keep(folder: Path, name: str, content: bytes) -> None:
    def write(file: Any) -> str:
        file.write(content)
        return name

    publish_file(LocalFiles(), folder, write)
