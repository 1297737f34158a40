"""Copying a cask out of an object store as it is, damage included, so that `repair` can work on the copy.

An import proves every document and stops at the first that is damaged. This takes every object, proves nothing, and
keeps the order of an export: shards and entries first, the manifest last, so an unfinished copy is no cask.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from logitcask_schemas.cask.cask_folder import prepare_folder
from logitcask_schemas.cask.document_table import DOCUMENTS_NAME
from logitcask_schemas.cask.files import LocalFiles, publish_file
from logitcask_schemas.cask.layout import ENTRY_SUFFIX, INDEX_NAME, MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.lock import writers_lock
from logitcask_schemas.cask.remote_inventory import read_manifest_of
from logitcask_schemas.cask.remote_store import RemoteStore
from logitcask_schemas.errors import CaskError, CaskNotFoundError

_LOCK_TIMEOUT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStep:
    """One object of the store, now a local file."""

    name: str
    bytes: int
    skipped: bool
    """Whether an earlier run had brought it."""


def copy_as_is(
    url: str,
    target: Path,
    *,
    options: Mapping[str, Any] | None = None,
    planned: Callable[[int], None] | None = None,
) -> Iterator[CopyStep]:
    """Copy every object of a cask into a local folder.

    Args:
        url: The cask's folder in the store.
        target: A new folder, or one in which an earlier copy of the same cask did not finish.
        options: See `RemoteStore`.
        planned: Called once with the bytes of all shards and entries.

    Yields:
        One step per object, when it is durable.

    Raises:
        CaskNotFoundError: There is no manifest at the URL.
        CaskError: The folder is a cask already or holds something else, or the store does not answer.
        CaskWriteError: The local disk is full or broken; run again when it is not.
        CaskLockedError: Somebody else is writing there.
    """
    store = RemoteStore(url, options)
    read_manifest_of(store)
    prepare_folder(LocalFiles(), target)
    with writers_lock(target, holder=uuid.uuid4().hex, timeout_seconds=_LOCK_TIMEOUT_SECONDS):
        if (target / MANIFEST_NAME).exists():
            raise CaskError(f"{target}: is a cask already; name a new folder for the copy of {store.url}")
        sizes = {name: size for name, size in store.sizes(SHARDS_NAME).items() if not name.startswith(".")}
        if planned is not None:
            planned(sum(sizes.values()))
        # Shards before entries, as when they were published.
        for name in sorted(sizes, key=lambda name: (name.endswith(ENTRY_SUFFIX), name)):
            path = target / SHARDS_NAME / name
            skipped = path.exists() and path.stat().st_size == sizes[name]
            if not skipped:
                _bring(store, f"{SHARDS_NAME}/{name}", path)
            yield CopyStep(name=f"{SHARDS_NAME}/{name}", bytes=sizes[name], skipped=skipped)
        for name in (DOCUMENTS_NAME, INDEX_NAME):
            # Both may be missing; a repair makes them anew.
            with suppress(CaskNotFoundError):
                _bring(store, name, target / name)
                yield CopyStep(name=name, bytes=(target / name).stat().st_size, skipped=False)
        _bring(store, MANIFEST_NAME, target / MANIFEST_NAME)
        yield CopyStep(name=MANIFEST_NAME, bytes=(target / MANIFEST_NAME).stat().st_size, skipped=False)


def _bring(store: RemoteStore, name: str, path: Path) -> None:
    """One object, durable under its name."""

    def fetch(file: BinaryIO) -> str:
        # Into the open file by its name, which fsspec wants; it is the same file.
        store.download(name, Path(file.name))
        return path.name

    publish_file(LocalFiles(), path.parent, fetch)
