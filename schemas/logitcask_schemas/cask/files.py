"""The file operations a publication is made of, and the one order in which they survive a crash.

Order: write a temporary file beside the target, fsync it, rename it over the target, fsync the directory. After a
crash at any instant the target is absent, old or new, never half of it.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from logitcask_schemas.cask.layout import TEMP_PREFIX
from logitcask_schemas.errors import CaskWriteError

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_NO_LINK: Final = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
"""Another file system, one without hard links, or too many links already."""
_BLOCK: Final = 1 << 20


class FileOperations(Protocol):
    """What publishing needs of a file system; tests record it, cut it short and make it fail."""

    def open_new(self, path: Path) -> BinaryIO:
        """A file that did not exist, for writing; its `write` takes all bytes or raises."""
        ...

    def sync_file(self, file: BinaryIO) -> None:
        """Return when the file's bytes are on stable storage."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Atomically replace the target."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Return when the directory's names are on stable storage."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """Give a file another name, on the same file system; the target must not exist."""
        ...

    def make_directory(self, path: Path) -> None:
        """Make a directory that may exist already; its parent does."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file that may be gone already."""
        ...


class LocalFiles:
    """The operating system's file system."""

    def open_new(self, path: Path) -> BinaryIO:
        """See `FileOperations.open_new`."""
        # Buffered on purpose: a raw file's write may take a part of the bytes and say so only in its result.
        return path.open("xb")

    def sync_file(self, file: BinaryIO) -> None:
        """See `FileOperations.sync_file`."""
        file.flush()
        os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """See `FileOperations.rename`."""
        source.replace(target)

    def sync_directory(self, path: Path) -> None:
        """See `FileOperations.sync_directory`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """See `FileOperations.link`."""
        os.link(source, target)

    def make_directory(self, path: Path) -> None:
        """See `FileOperations.make_directory`."""
        path.mkdir(exist_ok=True)

    def unlink(self, path: Path) -> None:
        """See `FileOperations.unlink`."""
        path.unlink(missing_ok=True)


def publish_file(files: FileOperations, directory: Path, write: Callable[[BinaryIO], str]) -> Path:
    """Write a file under a temporary name, make it durable, and give it the name that `write` returns.

    Args:
        files: The file system.
        directory: Where the file goes; on a crash only a name starting with `TEMP_PREFIX` can be left over.
        write: Puts the content into the open file and returns the final name (which may depend on the content).

    Returns:
        The published path.

    Raises:
        CaskWriteError: The file system refused; the temporary file is removed and the target is untouched.
    """
    temporary = directory / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
    with clear_errors(directory):
        try:
            with files.open_new(temporary) as file:
                target = directory / write(file)
                files.sync_file(file)
            files.rename(temporary, target)
        except BaseException:
            # Also on KeyboardInterrupt: nothing may be left behind by a process that lives on.
            files.unlink(temporary)
            raise
        files.sync_directory(directory)
    return target


def link_or_copy(files: FileOperations, source: Path, directory: Path, name: str, *, link: bool = True) -> bool:
    """Give a file a second name in another directory, durably; copy it where the file system has no links.

    Returns:
        Whether it was linked: then both names share their bytes on disk, which is safe since nothing changes in place.

    Raises:
        CaskWriteError: The file system refuses.
        FileNotFoundError: There is no source.
    """
    # What is shared is the file, wherever it lies: a second link could point to nothing from another folder.
    source = source.resolve() if source.is_symlink() else source
    if link:
        with clear_errors(directory):
            try:
                files.link(source, directory / name)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
            else:
                files.sync_directory(directory)
                return True

    def write(file: BinaryIO) -> str:
        with source.open("rb") as content:
            shutil.copyfileobj(content, file, _BLOCK)
        return name

    publish_file(files, directory, write)
    return False


@contextmanager
def clear_errors(directory: Path) -> Iterator[None]:
    """Turn the operating system's errors into ones that say what happened to the cask and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (CaskWriteError, FileNotFoundError)):
            raise
        cause = error.strerror or str(error)
        advice = "Free some space and publish again" if error.errno in _FULL else "Check the disk and publish again"
        raise CaskWriteError(
            f"{directory}: could not write: {cause}. This publication does not count; what was published "
            f"before is untouched. {advice}.",
            error.errno,
        ) from error
