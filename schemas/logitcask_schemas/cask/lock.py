"""The writers' lock of a cask: one publication, sweep or compaction at a time, across processes and threads.

Why flock, and not a file that merely exists: the kernel drops it when its holder dies, even by SIGKILL, so it can
never be stale and nobody has to guess whether a writer lives. Temporary files exist only while the lock is held;
whoever gets it therefore knows that every temporary file it finds was left by the dead, and may sweep it. Readers
take no lock: what they read was immutable before they could see its name. On a network file system flock must be
supported by the mount (NFS since Linux 2.6.12, Lustre with -o flock).
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from logitcask_schemas.cask.layout import LOCK_NAME
from logitcask_schemas.errors import CaskLockedError, CaskWriteError

_POLL_SECONDS: Final = 0.02


@contextmanager
def writers_lock(cask: Path, *, holder: str, timeout_seconds: float) -> Iterator[bool]:
    """Hold the cask's lock.

    Yields:
        Whether nobody else has held it since this holder last did. Then nobody else has published either, and a
        writer need not list the directory again: publishing stays independent of the number of shards.

    Args:
        cask: The cask's directory, which must exist.
        holder: A name no other writer uses; left in the lock file.
        timeout_seconds: How long to wait for another writer.

    Raises:
        CaskLockedError: Another process held it all that time; the message names its process id.
        CaskWriteError: The lock file cannot be opened or written, such as on a read-only or full disk.
    """
    path = cask / LOCK_NAME
    try:
        # Each holder opens the file anew: flock belongs to the open file, so this also excludes threads.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CaskWriteError(f"{path}: cannot open the lock for writing: {error.strerror}", error.errno) from error
    try:
        _acquire(descriptor, path, timeout_seconds)
        note = f"{os.getpid()} {holder}\n".encode()
        undisturbed = os.pread(descriptor, 256, 0) == note
        if not undisturbed:
            _leave_note(descriptor, note, path)
        yield undisturbed
    finally:
        os.close(descriptor)


def _leave_note(descriptor: int, note: bytes, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note, 0)
    except OSError as error:
        raise CaskWriteError(f"{path}: cannot write {len(note)} bytes: {error.strerror}", error.errno) from error


def _acquire(descriptor: int, path: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= deadline:
            holder = os.pread(descriptor, 256, 0).decode(errors="replace").partition(" ")[0] or "unknown"
            raise CaskLockedError(
                f"{path}: waited {timeout_seconds:g} s for the writer with process id {holder}. "
                "If that process hangs, end it; the lock goes with it."
            )
        time.sleep(_POLL_SECONDS)
