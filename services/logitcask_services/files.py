"""Files that survive a crash: written aside, flushed to the disk, renamed into place."""

import os
import shutil
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it is durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, target: Path) -> None:
    """Rename a flushed file or folder into place and make the rename durable."""
    temporary.rename(target)
    sync_folder(target.parent)


def free_bytes(folder: Path) -> int:
    """Free bytes, for an ordinary user, of the file system that holds `folder`."""
    return shutil.disk_usage(folder).free
