"""Opening a shard that an entry names, with errors that say what is wrong with it and what to do."""

from pathlib import Path

from logitcask_schemas.cask.carriers import carrier_of, shard_path
from logitcask_schemas.cask.layout import RecordLayout
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.errors import CaskCorruptionError, CaskNotFoundError
from logitcask_schemas.manifest import ShardEntry

_MEND = (
    "Restore the file from a copy of the cask, or give its documents up: remove its entry (the .json beside it) and "
    "index.json, and capture them again"
)


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
        raise CaskNotFoundError(
            f"{path}: shard {entry.name} of {entry.bytes} bytes with {entry.documents} documents is missing. {_MEND}."
        ) from error
    return Shard(path, entry, layout, columns)
