"""Opening a shard that an entry names, with errors that say what is wrong with it and what to do."""

import os
from collections.abc import Iterable
from pathlib import Path

from logitcask_schemas.cask.carriers import carrier_of, shard_path
from logitcask_schemas.cask.layout import SHARDS_NAME, RecordLayout
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.errors import CaskCorruptionError, CaskNotFoundError
from logitcask_schemas.manifest import ShardEntry

_MEND = (
    "Restore the file from a copy of the cask, or run `logitcask cask repair`, which keeps what is sound and lists the "
    "documents to capture again; where a repair has just taken the shard away, open the cask anew"
)


def require_shards(cask: Path, entries: Iterable[ShardEntry]) -> None:
    """Raise CaskNotFoundError naming the first shard without a file; lists the folder once, opens nothing."""
    with os.scandir(cask / SHARDS_NAME) as listing:
        present = {file.name for file in listing}
    for entry in entries:
        if (path := shard_path(cask, entry)).name not in present:
            raise _missing(path, entry)


def open_shard(cask: Path, entry: ShardEntry, layout: RecordLayout) -> Shard:
    """Open one shard; bulk data is mapped, not read.

    Raises:
        CaskNotFoundError: Its file is gone.
        CaskCorruptionError: Its file has another size, is no shard, is foreign, or disagrees with the entry.
        CaskError: A carrier this version does not know.
    """
    path = shard_path(cask, entry)
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise CaskCorruptionError(
                f"{path}: shard {entry.name} should have {entry.bytes} bytes, it has {size}. {_MEND}."
            )
        columns = carrier_of(entry).open(path, layout, entry.identity)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(path, entry) from error
    return Shard(path, entry, layout, columns)


def _missing(path: Path, entry: ShardEntry) -> CaskNotFoundError:
    return CaskNotFoundError(
        f"{path}: shard {entry.name} of {entry.bytes} bytes with {entry.documents} documents is missing. {_MEND}."
    )
