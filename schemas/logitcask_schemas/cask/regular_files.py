"""Opening files of a cask that somebody else may have made: regular ones of a sane size, or an error of ours.

A pipe under a file's name would keep a reader waiting for ever, a folder or a loop of links is an error that says
nothing of casks, and a file of a terabyte of holes would be read into memory.
"""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskReadError

_REFUSALS: Final = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EINTR}

_BLOCK: Final = 1 << 20
_SECTOR: Final = 4096


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Raises:
        FileNotFoundError, NotADirectoryError: There is none.
        CaskCorruptionError: Something else has its name, or the disk is broken.
        CaskReadError: The operating system refuses, which says nothing about the file.
    """
    try:
        # Opening a pipe without a writer would wait for one.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise CaskCorruptionError(f"{path}: is {_kind(mode)}, expected a file. Move it away.")
    return os.fdopen(descriptor, "rb")


def read_document(path: Path, most_bytes: int) -> bytes:
    """All bytes of a small file; errors as `open_regular`, and CaskCorruptionError where it is not small."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise CaskCorruptionError(f"{path}: has {size} bytes, a file of this kind has at most {most_bytes}.")
        try:
            return file.read(size)
        except OSError as error:
            raise unreadable(path, error) from error


def size_of(path: Path) -> int:
    """Bytes of a regular file that can be opened; errors as `open_regular`."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def read_whole(path: Path, most_bytes: int, took: Callable[[memoryview], object] | None = None) -> NDArray[np.uint8]:
    """A file's first bytes, at most so many; fewer where the file gets shorter meanwhile.

    Into memory, by reads: a mapping ends the process when the disk does not give a page back or the file gets shorter.

    Args:
        path: The file.
        most_bytes: Of the file; so much memory is taken at most.
        took: Called with each block as it comes, in order.

    Raises:
        FileNotFoundError, NotADirectoryError, CaskCorruptionError, CaskReadError: As `open_regular`.
    """
    with open_regular(path) as file:
        descriptor, done = file.fileno(), 0
        try:
            content = np.empty(min(os.fstat(descriptor).st_size, most_bytes), dtype=np.uint8)
            while done < len(content) and (count := os.preadv(descriptor, [content[done : done + _BLOCK].data], done)):
                if took is not None:
                    took(content[done : done + count].data)
                done += count
        except MemoryError as error:
            raise unreadable(path, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))) from error
        except OSError as error:
            raise unreadable(path, error) from error
    return content[:done]


def read_around_damage(path: Path, most_bytes: int, *, start: int = 0) -> NDArray[np.uint8]:
    """A file's bytes from `start` on, at most so many; what the disk does not give back reads as zeros.

    Raises:
        FileNotFoundError, NotADirectoryError, CaskCorruptionError, CaskReadError: As `open_regular`.
    """
    with open_regular(path) as file:
        descriptor = file.fileno()
        try:
            content = np.zeros(max(0, min(os.fstat(descriptor).st_size - start, most_bytes)), dtype=np.uint8)
        except MemoryError as error:
            raise unreadable(path, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))) from error
        for done in range(0, len(content), _BLOCK):
            block = content[done : done + _BLOCK]
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
