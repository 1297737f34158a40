"""The list of shards: entry files are the truth, index.json repeats them so that opening reads one file.

The shards of a cask are those of the index and of every entry file beside it. An entry file stays when the index
takes it up: the index can be deleted at any time and is rebuilt by the next writer.

A cask is listed in the same way wherever it lies; `LocalDirectory` and `StoreDirectory` bring the bytes.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME, MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import (
    RESTORE,
    CaskManifest,
    entry_bytes,
    index_bytes,
    manifest_bytes,
    parse_entry,
    parse_index,
    parse_manifest,
)
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.storage.files import FileOperations, publish_file, read_document, unreadable
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError, CaskReadError

_NAMED: Final = 5
"""Casks that an error names."""
_MAX_BYTES: Final = {MANIFEST_NAME: 64 << 20, ENTRY_SUFFIX: 64 << 10, INDEX_NAME: 2 << 30}
"""Far more than any of them has; an index of this size lists six million shards."""
_LISTINGS: Final = 10
"""Times that a reader lists a folder of which a repair removes entries meanwhile."""

OnDamage = Callable[[str, CaskError], None]
"""Is told the name of a damaged file, below the cask, and what is wrong with it."""


def refuse_damage(name: str, error: CaskError) -> None:
    """Raise what is wrong."""
    raise error


class Directory(Protocol):
    """The small files of a cask, unread."""

    @property
    def place(self) -> str:
        """Folder or URL, for people."""
        ...

    def read_manifest(self) -> bytes:
        """The bytes of cask.json; CaskNotFoundError where there is none."""
        ...

    def file_names(self) -> list[str]:
        """Names of everything among the shards; CaskNotFoundError where their folder is missing."""
        ...

    def read_index(self) -> bytes | None:
        """The bytes of index.json; None where there is none."""
        ...

    def read_entries(self, names: Iterable[str], damaged: OnDamage) -> dict[str, bytes]:
        """The bytes of the entries of these shards; CaskNotFoundError where one is gone by now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDirectory:
    """Those of a cask in a local folder."""

    path: Path

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.path)

    def read_manifest(self) -> bytes:
        """The bytes of cask.json, from the folder."""
        try:
            return read_document(self.path / MANIFEST_NAME, _MAX_BYTES[MANIFEST_NAME])
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CaskNotFoundError(
                f"{self.path}: not a cask (it has no {MANIFEST_NAME}). {self._what_else()}."
            ) from error

    def _what_else(self) -> str:
        """What a folder without a manifest is instead, and what to do."""
        if (self.path / SHARDS_NAME).is_dir():
            return "It holds shards: an export into it has not finished (run it again), or the file was lost"
        if casks := sorted(manifest.parent.name for manifest in self.path.glob(f"*/{MANIFEST_NAME}")):
            more = ", ..." if len(casks) > _NAMED else ""
            return f"It holds casks; name one of them: {', '.join(casks[:_NAMED])}{more}"
        return f"A cask is the folder that holds {MANIFEST_NAME}"

    def file_names(self) -> list[str]:
        """Names of all files in the folder of shards."""
        try:
            with os.scandir(self.path / SHARDS_NAME) as files:
                return [file.name for file in files]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CaskNotFoundError(
                f"{self.path / SHARDS_NAME}: the folder of shards is missing. {RESTORE}."
            ) from error
        except OSError as error:
            raise unreadable(self.path / SHARDS_NAME, error) from error

    def read_index(self) -> bytes | None:
        """The bytes of index.json; None where there is none."""
        try:
            return read_document(self.path / INDEX_NAME, _MAX_BYTES[INDEX_NAME])
        except FileNotFoundError:
            return None

    def read_entries(self, names: Iterable[str], damaged: OnDamage) -> dict[str, bytes]:
        """The bytes of these entries, one file after another; `damaged` is told of those that cannot be read."""
        contents = {}
        for name in names:
            try:
                contents[name] = self._read_entry(name)
            except CaskCorruptionError as error:
                damaged(entry_file(name), error)
        return contents

    def _read_entry(self, name: str) -> bytes:
        path = self.path / entry_file(name)
        try:
            return read_document(path, _MAX_BYTES[ENTRY_SUFFIX])
        except (FileNotFoundError, NotADirectoryError) as error:
            if path.is_symlink():
                raise CaskCorruptionError(f"{path}: is a link to nothing. {RESTORE}.") from error
            raise CaskNotFoundError(f"{path}: the entry of shard {name} is missing. {RESTORE}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDirectory:
    """Those of a cask in an object store."""

    store: RemoteStore

    @property
    def place(self) -> str:
        """The URL."""
        return self.store.url

    def read_manifest(self) -> bytes:
        """The bytes of cask.json, from the store."""
        try:
            return self.store.read(MANIFEST_NAME)
        except CaskNotFoundError as error:
            raise CaskNotFoundError(
                f"{self.store.url}: not a cask (it has no {MANIFEST_NAME}). A cask is the folder that holds "
                f"{MANIFEST_NAME}; an export that has not finished has none yet."
            ) from error

    def file_names(self) -> list[str]:
        """Names of all objects among the shards."""
        return list(self.store.sizes(SHARDS_NAME))

    def read_index(self) -> bytes | None:
        """The bytes of index.json; None where there is none."""
        try:
            return self.store.read(INDEX_NAME)
        except CaskNotFoundError:
            return None

    def read_entries(self, names: Iterable[str], damaged: OnDamage) -> dict[str, bytes]:
        """The bytes of these entries, all asked for at a time."""
        names = list(names)
        contents = self.store.read_all([entry_file(name) for name in names])
        for name in names:
            if entry_file(name) not in contents:
                raise CaskNotFoundError(f"{self.store.url}/{entry_file(name)}: the entry of shard {name} is missing")
        return {name: contents[entry_file(name)] for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a cask listed when it was looked at."""

    file_names: list[str]
    """Everything among the shards."""
    indexed: dict[str, ShardEntry]
    """By name, those that the index holds."""
    loose: dict[str, ShardEntry]
    """By name, those that only have an entry file."""
    index: bytes | None
    """The index as it was read; None where there is none."""

    @property
    def entries(self) -> list[ShardEntry]:
        """All shards, ascending by name."""
        return sorted([*self.indexed.values(), *self.loose.values()], key=lambda entry: entry.name)


def read_manifest(directory: Directory) -> CaskManifest:
    """cask.json, validated.

    Raises:
        CaskNotFoundError: The cask has none.
        CaskCorruptionError: It is damaged.
        CaskError: It is of a newer version, or not logitcask's; a store does not answer.
    """
    return parse_manifest(directory.read_manifest(), where=f"{directory.place}/{MANIFEST_NAME}")


def read_listing(directory: Directory, damaged: OnDamage = refuse_damage) -> Listing:
    """Index and entries.

    The index is read after the listing: a compaction in between then leaves an entry in both, never in neither. An
    entry that is gone after the listing was taken away by a repair, which had published what was sound of its shard
    before: another listing shows that.

    Args:
        directory: Of the cask.
        damaged: Is told of a damaged index or entry; what it does not raise is left out.

    Raises:
        CaskNotFoundError: The cask has lost its folder of shards.
        CaskReadError: The operating system refuses to read what may be sound.
        CaskError: A store does not answer.
    """
    with _no_collection():
        return _read_listing(directory, damaged)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Do not look for cyclic garbage: entries form no cycles, and looking at 100,000 new ones doubles their time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _read_listing(directory: Directory, damaged: OnDamage) -> Listing:
    for attempt in range(_LISTINGS):
        file_names, index = directory.file_names(), None
        indexed = dict[str, ShardEntry]()
        try:
            if (index := directory.read_index()) is not None:
                indexed = parse_index(index, where=f"{directory.place}/{INDEX_NAME}")
        except CaskReadError:
            raise
        except CaskError as error:
            damaged(INDEX_NAME, error)
        names = [name for name in entry_names(file_names) if name not in indexed]
        try:
            return Listing(
                file_names=file_names, indexed=indexed, loose=_read_entries(directory, names, damaged), index=index
            )
        except CaskNotFoundError:
            if attempt == _LISTINGS - 1:
                raise
    raise AssertionError("unreachable")


def _read_entries(directory: Directory, names: list[str], damaged: OnDamage) -> dict[str, ShardEntry]:
    entries = {}
    for name, content in directory.read_entries(names, damaged).items():
        try:
            entries[name] = parse_entry(content, where=f"{directory.place}/{entry_file(name)}", name=name)
        except CaskCorruptionError as error:
            damaged(entry_file(name), error)
    return entries


def read_entry(directory: Directory, name: str) -> ShardEntry:
    """One entry file, validated.

    Raises:
        CaskNotFoundError: There is none (any more).
        CaskCorruptionError: It is damaged, or has another name than its own.
    """
    return _read_entries(directory, [name], refuse_damage)[name]


def entry_file(name: str) -> str:
    """Where a shard's entry lies, below the cask."""
    return f"{SHARDS_NAME}/{name}{ENTRY_SUFFIX}"


def entry_names(file_names: Iterable[str]) -> list[str]:
    """Names of the shards that have an entry, among the names of a folder of shards, ascending."""
    return sorted(
        name.removesuffix(ENTRY_SUFFIX) for name in file_names if name.endswith(ENTRY_SUFFIX) and name[0] != "."
    )


def require_identity(
    place: str, entries: Iterable[ShardEntry], manifest: CaskManifest, *, exported_into: bool = False
) -> None:
    """Require that every entry was published into the cask of this manifest.

    Args:
        place: Of the cask, for people.
        entries: What it lists.
        manifest: Its own; or the one that it will have.
        exported_into: Whether it is the target of an export: an unfinished one has no manifest yet, and its entries
            tell whose it is.

    Raises:
        CaskError: An entry has another identity; into an export.
        CaskCorruptionError: An entry has another identity; else.
    """
    identity = manifest.identity_digest()
    for entry in entries:
        if entry.identity != identity and exported_into:
            raise CaskError(
                f"{place}: holds shard {entry.name} of another teacher or capture spec (identity {entry.identity}, the "
                f"source's is {identity}): an unfinished export of another cask? Name an empty folder."
            )
        if entry.identity != identity:
            raise CaskCorruptionError(
                f"{place}/{entry_file(entry.name)}: foreign shard: its identity is {entry.identity}, "
                f"this cask's is {identity}. Move the shard and its entry back to the cask they came from."
            )


def write_manifest(files: FileOperations, cask: Path, manifest: CaskManifest) -> None:
    """Publish cask.json."""
    _publish_document(files, cask, MANIFEST_NAME, manifest_bytes(manifest))


def write_entry(files: FileOperations, cask: Path, entry: ShardEntry) -> None:
    """Publish a shard's entry; from this rename on the shard is part of the cask."""
    _publish_document(files, cask / SHARDS_NAME, entry.name + ENTRY_SUFFIX, entry_bytes(entry))


def write_index(files: FileOperations, cask: Path, entries: Iterable[ShardEntry]) -> None:
    """Publish index.json with these entries, sorted by name."""
    _publish_document(files, cask, INDEX_NAME, index_bytes(entries))


def _publish_document(files: FileOperations, directory: Path, name: str, document: bytes) -> None:
    def write(file: Any) -> str:
        file.write(document)
        return name

    publish_file(files, directory, write)
