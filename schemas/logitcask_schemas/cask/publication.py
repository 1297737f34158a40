"""Publishing one shard: its file, durable, then its entry. Only for whoever holds the writers' lock."""

from pathlib import Path
from typing import BinaryIO

from logitcask_schemas.cask.carrier import Carrier
from logitcask_schemas.cask.columns import ShardColumns
from logitcask_schemas.cask.files import FileOperations, clear_errors, publish_file
from logitcask_schemas.cask.index import write_entry
from logitcask_schemas.cask.layout import ENTRY_SUFFIX, SHARDS_NAME, RecordLayout
from logitcask_schemas.cask.shard_writing import write_shard
from logitcask_schemas.errors import CaskWriteError
from logitcask_schemas.manifest import ShardEntry


def publish_shard(
    files: FileOperations, cask: Path, carrier: Carrier, columns: ShardColumns, layout: RecordLayout, identity: str
) -> ShardEntry:
    """Write a shard and its entry; when this returns, both survive a crash.

    Raises:
        CaskError: The format cannot hold a shard of this size.
        CaskWriteError: Disk full or broken; the cask is unchanged.
    """
    entry = publish_shard_file(files, cask, carrier, columns, layout, identity)
    publish_entry(files, cask, entry, carrier)
    return entry


def publish_shard_file(
    files: FileOperations, cask: Path, carrier: Carrier, columns: ShardColumns, layout: RecordLayout, identity: str
) -> ShardEntry:
    """Write a shard's file, which belongs to no cask before its entry is written; errors as `publish_shard`."""
    shards, entries = cask / SHARDS_NAME, list[ShardEntry]()

    def write(file: BinaryIO) -> str:
        entries.append(write_shard(carrier, columns, layout, identity, file))
        return entries[0].name + carrier.suffix

    publish_file(files, shards, write)
    return entries[0]


def publish_entry(files: FileOperations, cask: Path, entry: ShardEntry, carrier: Carrier) -> None:
    """Make a shard whose file has its name part of the cask; on failure give its space back.

    Raises:
        CaskWriteError: Disk full or broken.
    """
    try:
        write_entry(files, cask, entry)
    except CaskWriteError:
        # Unless the entry got its name and only its durability is in doubt.
        shards = cask / SHARDS_NAME
        if not (shards / (entry.name + ENTRY_SUFFIX)).exists():
            with clear_errors(shards):
                files.unlink(shards / (entry.name + carrier.suffix))
        raise
