"""Removing what writers that died left behind. Only for whoever holds the writers' lock."""

from collections.abc import Set as AbstractSet
from pathlib import Path

from logitcask_schemas.cask.carriers import CARRIERS
from logitcask_schemas.cask.files import FileOperations
from logitcask_schemas.cask.layout import QUARANTINE_NAME, SHARDS_NAME, TEMP_PREFIX


def sweep(files: FileOperations, cask: Path, published: AbstractSet[str]) -> list[Path]:
    """Remove temporary files, and shards that were renamed into place but never got their entry.

    With the lock held no writer is inside a publication, so every such file belongs to one that died; nobody was told
    that its documents are stored, and no reader knows it.

    Args:
        files: The file system.
        cask: The cask's directory.
        published: Names of all shards that have an entry, in the index or as a file.

    Returns:
        What was removed.
    """
    suffixes = tuple(carrier.suffix for carrier in CARRIERS.values())
    removed = []
    for directory in (cask, cask / SHARDS_NAME, *(cask / QUARANTINE_NAME).glob("*/")):
        for path in directory.iterdir():
            unpublished = (
                directory.name == SHARDS_NAME
                and path.name.endswith(suffixes)
                and path.name.partition(".")[0] not in published
            )
            if path.name.startswith(TEMP_PREFIX) or unpublished:
                files.unlink(path)
                removed.append(path)
    return removed
