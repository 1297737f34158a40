"""A shard's columns into a file, with the entry that describes it.

A shard is named once, by whoever writes it first, after its Arrow form: the first 32 hex digits of the SHA-256 of the
file that the Arrow carrier makes of the columns, whichever carrier stores them. An export keeps the name, and with the
names the order of the documents; run again it knows what is already there without reading it.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Final

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.carriers.registry import CARRIERS, carrier_of
from logitcask_schemas.cask.directory import LocalDirectory, entry_names, write_entry
from logitcask_schemas.cask.documents import DOCUMENTS_NAME
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import (
    ENTRY_SUFFIX,
    INDEX_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SHARDS_NAME,
    TEMP_PREFIX,
    RecordLayout,
)
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_publication import publish_hints
from logitcask_schemas.cask.storage.files import FileOperations, clear_errors, publish_file
from logitcask_schemas.cask.storage.hashing_sink import HashingSink
from logitcask_schemas.errors import CaskError, CaskWriteError
from logitcask_schemas.record.hint_spec import HintSpec

Announce = Callable[[str], None]
"""Hears the name of a shard that is about to be published; what it raises is raised, and nothing is published."""


def sweep(files: FileOperations, cask: Path, published: Iterable[ShardEntry]) -> list[Path]:
    """Remove temporary files, and shards that were renamed into place but never got their entry.

    With the lock held no writer is inside a publication, so every such file belongs to one that died; nobody was told
    that its documents are stored, and no reader knows it. That includes a file whose shard was published later, but in
    another carrier. Folders are nobody's leftovers.

    Args:
        files: The file system.
        cask: The cask's directory.
        published: All shards that have an entry, in the index or as a file.

    Returns:
        What was removed.

    Raises:
        CaskWriteError: The file system refuses.
    """
    suffixes = tuple(carrier.suffix for carrier in CARRIERS.values())
    entries = list(published)
    named = {entry.name + carrier_of(entry).suffix for entry in entries}
    named |= {entry.hints_name for entry in entries if entry.hints is not None}
    removed = []
    with clear_errors(cask):
        for directory in (cask, cask / SHARDS_NAME, *(cask / QUARANTINE_NAME).glob("*/")):
            for path in directory.iterdir():
                unpublished = directory.name == SHARDS_NAME and path.name.endswith(suffixes) and path.name not in named
                left_over = path.name.startswith(TEMP_PREFIX) or unpublished
                if left_over and (path.is_symlink() or not path.is_dir()):
                    files.unlink(path)
                    removed.append(path)
    return removed


_OURS: Final = {MANIFEST_NAME, INDEX_NAME, DOCUMENTS_NAME, LOCK_NAME, SHARDS_NAME, QUARANTINE_NAME}
_NEVER_FIRST: Final = {INDEX_NAME, DOCUMENTS_NAME, QUARANTINE_NAME}


def prepare_folder(files: FileOperations, path: Path) -> None:
    """Make a cask's folder with its folder of shards where they are missing, durably.

    Raises:
        CaskError: The folder holds something else than a cask, or a file is in the way.
        CaskWriteError: The file system refuses.
    """
    try:
        missing = [path, *path.parents]
        for parent in reversed(missing[1:]):
            if not parent.exists():
                files.make_directory(parent)
                files.sync_directory(parent.parent)
        files.make_directory(path)
        if not (path / MANIFEST_NAME).exists():
            require_only_cask(str(path), (child.name for child in path.iterdir()))
        files.make_directory(path / SHARDS_NAME)
        files.sync_directory(path)
        files.sync_directory(path.parent)
    except FileExistsError as error:
        raise CaskError(f"{path}: a file is in the way of the cask's folder") from error
    except OSError as error:
        if isinstance(error, CaskError):
            raise
        raise CaskWriteError(f"{path}: cannot make the cask's folder: {error.strerror}", error.errno) from error


def require_new(path: Path) -> None:
    """Require of a folder without a manifest that nothing was ever published there.

    A writer makes the manifest first and an export makes it last, so shards without one are an export that has not
    finished, or what is left of a cask that lost its manifest. Neither may pass for a whole cask.

    Raises:
        CaskError: There are shards.
    """
    require_no_shards(str(path), LocalDirectory(path=path).file_names(), (child.name for child in path.iterdir()))


def require_no_shards(place: str, file_names: Iterable[str], names: Iterable[str]) -> None:
    """As `require_new`, of any place.

    Args:
        place: Folder or URL.
        file_names: What lies among its shards.
        names: What lies in it.

    Raises:
        CaskError: There are shards.
    """
    if entry_names(file_names) or not _NEVER_FIRST.isdisjoint(names):
        raise CaskError(
            f"{place}: holds shards, but no {MANIFEST_NAME}: an export into it has not finished (run it again), or it "
            f"is a cask that lost its {MANIFEST_NAME} (restore that from a copy). Or name an empty folder."
        )


def require_only_cask(place: str, names: Iterable[str]) -> None:
    """Require of what lies in a place without a manifest that it may belong to a cask. Raises CaskError."""
    for name in names:
        if name not in _OURS and TEMP_PREFIX not in name:
            raise CaskError(f"{place}: holds {name!r} and no {MANIFEST_NAME}: not a cask. Name an empty or new folder.")


def cask_around(path: Path) -> Path | None:
    """The cask that a path is, or lies in, once links are followed; None where it is in none."""
    place = Path(os.path.realpath(path))
    return next((folder for folder in (place, *place.parents) if (folder / MANIFEST_NAME).exists()), None)


def write_shard(
    carrier: Carrier,
    columns: ShardColumns,
    layout: RecordLayout,
    identity: str,
    file: BinaryIO,
    *,
    name: str | None = None,
) -> ShardEntry:
    """Write a shard to an open file and describe it.

    Args:
        carrier: File format.
        columns: The shard.
        layout: Of its cask.
        identity: Of its cask.
        file: Open for writing.
        name: Which it already has; None for a new shard.

    Raises:
        CaskError: The format cannot hold a shard of this size.
        OSError: From the file, unchanged.
    """
    sink = HashingSink(file)
    carrier.write(columns, layout, identity, sink)
    if name is None:
        arrow = sink
        if carrier.name != ArrowCarrier.name:
            arrow = HashingSink(None)
            ArrowCarrier().write(columns, layout, identity, arrow)
        name = arrow.sha256.hexdigest()[:32]
    return ShardEntry(
        name=name,
        carrier=carrier.name,
        bytes=sink.size,
        sha256=sink.sha256.hexdigest(),
        identity=identity,
        documents=len(columns.document_ids),
        tokens=int(columns.offsets["token"][-1]),
        positions=int(columns.offsets["position"][-1]),
        head_entries=int(columns.offsets["head"][-1]),
        tail_entries=int(columns.offsets["tail"][-1]),
        **columns.lists.counts(),
    )


def publish_shard(
    files: FileOperations,
    cask: Path,
    carrier: Carrier,
    columns: ShardColumns,
    layout: RecordLayout,
    identity: str,
    hints: HintSpec | None = None,
    announce: Announce = lambda name: None,
) -> ShardEntry:
    """Write a shard with the file of its hints, and its entry; when this returns, all survive a crash.

    Args:
        files: The file system.
        cask: The cask's folder.
        carrier: File format.
        columns: The shard.
        layout: Of its cask.
        identity: Of its cask.
        hints: What its cask keeps of them.
        announce: Hears the shard's name before its entry is written.

    Raises:
        CaskError: The format cannot hold a shard of this size.
        CaskWriteError: Disk full or broken; the cask is unchanged.
        OSError: From `announce`; the cask is unchanged.
    """
    entry = publish_shard_file(files, cask, carrier, columns, layout, identity, hints)
    publish_entry(files, cask, entry, carrier, announce)
    return entry


def publish_shard_file(
    files: FileOperations,
    cask: Path,
    carrier: Carrier,
    columns: ShardColumns,
    layout: RecordLayout,
    identity: str,
    hints: HintSpec | None = None,
) -> ShardEntry:
    """Write a shard's files, which belong to no cask before its entry is written; as `publish_shard`."""
    shards, entries = cask / SHARDS_NAME, list[ShardEntry]()

    def write(file: BinaryIO) -> str:
        entries.append(write_shard(carrier, columns, layout, identity, file))
        return entries[0].name + carrier.suffix

    path = publish_file(files, shards, write)
    try:
        return publish_hints(files, cask, entries[0], columns, hints)
    except CaskError:
        # A full disk gets back what the shard took.
        with clear_errors(shards):
            files.unlink(path)
        raise


def publish_entry(
    files: FileOperations,
    cask: Path,
    entry: ShardEntry,
    carrier: Carrier,
    announce: Announce = lambda name: None,
) -> None:
    """Make a shard whose files have their names part of the cask; on failure give their space back.

    Raises:
        CaskWriteError: Disk full or broken.
        OSError: From `announce`, which hears the shard's name before its entry is written.
    """
    try:
        announce(entry.name)
        write_entry(files, cask, entry)
    except OSError:  # a CaskWriteError is one
        # Unless the entry got its name and only its durability is in doubt.
        shards = cask / SHARDS_NAME
        if not (shards / (entry.name + ENTRY_SUFFIX)).exists():
            with clear_errors(shards):
                files.unlink(shards / (entry.name + carrier.suffix))
                if entry.hints is not None:
                    files.unlink(shards / entry.hints_name)
        raise
