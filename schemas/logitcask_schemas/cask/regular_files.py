"""Opening files of a cask that somebody else may have made: regular ones of a sane size, or an error of ours.

A pipe under a file's name would keep a reader waiting for ever, a folder or a loop of links is an error that says
nothing of casks, and a file of a terabyte of holes would be read into memory.
"""

import errno
import os
import stat
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


def read_around_damage(path: Path, most_bytes: int) -> NDArray[np.uint8]:
    """A file's first bytes, at most so many; what the disk does not give back reads as zeros.

    Raises:
        FileNotFoundError, NotADirectoryError, CaskCorruptionError, CaskReadError: As `open_regular`.
    """
    with open_regular(path) as file:
        descriptor = file.fileno()
        content = np.zeros(min(os.fstat(descriptor).st_size, most_bytes), dtype=np.uint8)
        for start in range(0, len(content), _BLOCK):
            block = content[start : start + _BLOCK]
            try:
                os.preadv(descriptor, [block.data], start)
            except OSError:
                # Sector by sector, or the whole block would count as lost.
                for at in range(0, len(block), _SECTOR):
                    with suppress(OSError):
                        os.preadv(descriptor, [block[at : at + _SECTOR].data], start + at)
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
