"""The folder that a writer or an export makes a cask of, and what tells an unfinished cask from a new one."""

from pathlib import Path
from typing import Final

from logitcask_schemas.cask.document_table import DOCUMENTS_NAME
from logitcask_schemas.cask.files import FileOperations
from logitcask_schemas.cask.index import entry_names
from logitcask_schemas.cask.layout import (
    INDEX_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    SHARDS_NAME,
    TEMP_PREFIX,
)
from logitcask_schemas.errors import CaskError, CaskWriteError

_OURS: Final = {MANIFEST_NAME, INDEX_NAME, DOCUMENTS_NAME, LOCK_NAME, SHARDS_NAME, QUARANTINE_NAME}
_NEVER_FIRST: Final = (INDEX_NAME, DOCUMENTS_NAME, QUARANTINE_NAME)


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
            strange = [one.name for one in path.iterdir() if one.name not in _OURS and TEMP_PREFIX not in one.name]
            if strange:
                raise CaskError(
                    f"{path}: holds {strange[0]!r} and no {MANIFEST_NAME}: not a cask. Name an empty or new folder."
                )
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
    if entry_names(path) or any((path / name).exists() for name in _NEVER_FIRST):
        raise CaskError(
            f"{path}: holds shards, but no {MANIFEST_NAME}: an export into it has not finished (run it again), or it "
            f"is a cask that lost its {MANIFEST_NAME} (restore that from a copy). Or name an empty folder."
        )
