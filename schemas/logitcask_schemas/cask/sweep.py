"""Removing what writers that died left behind. Only for whoever holds the writers' lock."""

from collections.abc import Iterable
from pathlib import Path

from logitcask_schemas.cask.carriers import CARRIERS, carrier_of
from logitcask_schemas.cask.files import FileOperations, clear_errors
from logitcask_schemas.cask.layout import QUARANTINE_NAME, SHARDS_NAME, TEMP_PREFIX
from logitcask_schemas.manifest import ShardEntry


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
    named = {entry.name + carrier_of(entry).suffix for entry in published}
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
