"""The file operations a publication is made of, and the one order in which they survive a crash.

Order: write a temporary file beside the target, fsync it, rename it over the target, fsync the directory. After a
crash at any instant the target is absent, old or new, never half of it.
"""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.format.layout import TEMP_PREFIX
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskReadError, CaskWriteError

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk or a quota that is full."""
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
        """A new file, open for writing."""
        # Buffered on purpose: a raw file's write may take a part of the bytes and say so only in its result.
        return path.open("xb")

    def sync_file(self, file: BinaryIO) -> None:
        """Return when the file's bytes are on the disk."""
        file.flush()
        os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """Atomically replace the target."""
        source.replace(target)

    def sync_directory(self, path: Path) -> None:
        """Return when the directory's names are on the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, a hard link."""
        os.link(source, target)

    def make_directory(self, path: Path) -> None:
        """Make a directory, or leave the one that is there."""
        path.mkdir(exist_ok=True)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
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


def publish_path(temporary: Path, target: Path) -> None:
    """Rename a file or folder, whose content is on the disk, over the target. Durable on return. Raises OSError."""
    files = LocalFiles()
    files.rename(temporary, target)
    files.sync_directory(target.parent)


def disk_full(folder: Path) -> OSError:
    """The error of a disk that has no more room than is to be left alone."""
    return OSError(errno.ENOSPC, "too few bytes are free", str(folder))


def free_bytes(folder: Path) -> int:
    """Free bytes, for an ordinary user, of the file system that holds a folder."""
    return shutil.disk_usage(folder).free


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
        advice = "Free some space and publish again" if error.errno in NO_SPACE else "Check the disk and publish again"
        raise CaskWriteError(
            f"{directory}: could not write: {cause}. This publication does not count; what was published "
            f"before is untouched. {advice}.",
            error.errno,
        ) from error


@contextmanager
def writes_explained(what: str, advice: str) -> Iterator[None]:
    """Turn the operating system's errors into CaskWriteErrors that say what could not be written, why, and what to do.

    Args:
        what: The path, and what was tried there.
        advice: A sentence without its full stop.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, CaskError):
            raise
        raise CaskWriteError(f"{what}: {error.strerror or error}. {advice}.", error.errno) from error


@contextmanager
def reads_explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about a file of a cask into ours, see `unreadable`.

    A file that is not there stays a FileNotFoundError or NotADirectoryError.
    """
    try:
        yield
    except MemoryError as error:
        raise unreadable(path, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))) from error
    except OSError as error:
        if isinstance(error, (CaskError, FileNotFoundError, NotADirectoryError)):
            raise
        raise unreadable(path, error) from error


_REFUSALS: Final = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EINTR}

_READ_BYTES: Final = 1 << 20
_SECTOR: Final = 4096


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Raises:
        FileNotFoundError, NotADirectoryError: There is none.
        CaskCorruptionError: Something else has its name, or the disk is broken.
        CaskReadError: The operating system refuses, which says nothing about the file.
    """
    with reads_explained(path):
        # Opening a pipe without a writer would wait for one.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise CaskCorruptionError(f"{path}: is {_kind(mode)}, expected a file. Move it away.")
    return os.fdopen(descriptor, "rb")


def read_document(path: Path, max_bytes: int) -> bytes:
    """All bytes of a small file; errors as `open_regular`, and CaskCorruptionError where it is not small."""
    with open_regular(path) as file, reads_explained(path):
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise CaskCorruptionError(f"{path}: has {size} bytes, a file of this kind has at most {max_bytes}.")
        return file.read(size)


def size_of(path: Path) -> int:
    """Bytes of a regular file that can be opened; errors as `open_regular`."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def read_whole(path: Path, max_bytes: int, on_block: Callable[[memoryview], object] | None = None) -> NDArray[np.uint8]:
    """A file's first bytes, at most so many; fewer where the file gets shorter meanwhile.

    Into memory, by reads: a mapping ends the process when the disk does not give a page back or the file gets shorter.

    Args:
        path: The file.
        max_bytes: Of the file; so much memory is taken at most.
        on_block: Called with each block as it comes, in order.

    Raises:
        FileNotFoundError, NotADirectoryError, CaskCorruptionError, CaskReadError: As `open_regular`.
    """
    with open_regular(path) as file, reads_explained(path):
        descriptor, done = file.fileno(), 0
        content = np.empty(min(os.fstat(descriptor).st_size, max_bytes), dtype=np.uint8)
        while done < len(content) and (count := os.preadv(descriptor, [content[done : done + _READ_BYTES].data], done)):
            if on_block is not None:
                on_block(content[done : done + count].data)
            done += count
    return content[:done]


def read_around_damage(path: Path, max_bytes: int, *, start: int = 0) -> NDArray[np.uint8]:
    """A file's bytes from `start` on, at most so many; what the disk does not give back reads as zeros.

    Raises:
        FileNotFoundError, NotADirectoryError, CaskCorruptionError, CaskReadError: As `open_regular`.
    """
    with open_regular(path) as file:
        descriptor = file.fileno()
        with reads_explained(path):
            content = np.zeros(max(0, min(os.fstat(descriptor).st_size - start, max_bytes)), dtype=np.uint8)
        for done in range(0, len(content), _READ_BYTES):
            block = content[done : done + _READ_BYTES]
            try:
                os.preadv(descriptor, [block.data], start + done)
            except OSError:
                # Sector by sector, or the whole block would count as lost.
                for at in range(0, len(block), _SECTOR):
                    with suppress(OSError):
                        os.preadv(descriptor, [block[at : at + _SECTOR].data], start + done + at)
    return content


def unreadable(path: Path, error: OSError) -> CaskError:
    """What an error of the operating system means for a file of a cask.

    Returns:
        CaskReadError where the file may well be sound (permissions, too many open files): nothing may be concluded from
        it, least of all by a repair. CaskCorruptionError otherwise.
    """
    cause = error.strerror or str(error)
    if error.errno in _REFUSALS:
        return CaskReadError(
            f"{path}: cannot be read: {cause}. Nothing is wrong with the file as far as is known; see to it that this "
            "process may read it, and try again.",
            error.errno,
        )
    return CaskCorruptionError(f"{path}: cannot be read: {cause}.")


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((kind for test, kind in kinds if test(mode)), "a device")
