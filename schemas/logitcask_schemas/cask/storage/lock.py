"""The writers' lock of a cask: one publication, sweep or compaction at a time, across processes and threads.

Why flock, and not a file that merely exists: the kernel drops it when its holder dies, even by SIGKILL, so it can
never be stale and nobody has to guess whether a writer lives. Temporary files exist only while the lock is held;
whoever gets it therefore knows that every temporary file it finds was left by the dead, and may sweep it. Readers
take no lock: what they read was immutable before they could see its name. On a network file system flock must be
supported by the mount (NFS since Linux 2.6.12, Lustre with -o flock).

A flock belongs to the open file, which a forked child shares: a child that was forked while another thread published
would keep its parent's lock for as long as it lives. So the lock is released by name instead of by closing the file,
and a forked child closes what it inherited, in case its parent is killed.
"""

import fcntl
import os
import random
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from logitcask_schemas.cask.format.layout import LOCK_NAME
from logitcask_schemas.errors import CaskLockedError, CaskWriteError

_POLL_SECONDS: Final = 0.005
_OPEN: Final[set[int]] = set()
"""Descriptors of lock files that this process has open."""
_OPENING: Final = threading.RLock()
"""Held across a fork: the child must know of every descriptor that it inherits."""


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
        CaskWriteError: The lock file cannot be opened or written, such as on a read-only or full disk, or something
            else has its name.
    """
    path, deadline = cask / LOCK_NAME, time.monotonic() + timeout_seconds
    while True:
        descriptor = _open(path)
        try:
            _acquire(descriptor, path, deadline, timeout_seconds)
            if not _is_still(descriptor, path):
                # Somebody removed the file while this process waited: whoever comes next locks a new one.
                continue
            note = f"{os.getpid()} {holder}\n".encode()
            undisturbed = os.pread(descriptor, 256, 0) == note
            if not undisturbed:
                _leave_note(descriptor, note, path)
            yield undisturbed
            return
        finally:
            _close(descriptor)


def _open(path: Path) -> int:
    # Each holder opens the file anew: flock belongs to the open file, so this also excludes threads.
    # A link is not followed: what it points to would be overwritten with the holder's note.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with _OPENING:
            descriptor = os.open(path, flags, 0o644)
            _OPEN.add(descriptor)
    except OSError as error:
        raise CaskWriteError(f"{path}: cannot open the lock for writing: {error.strerror}", error.errno) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        _close(descriptor)
        raise CaskWriteError(f"{path}: cannot lock: it is no regular file. Remove it; the next writer makes it anew.")
    return descriptor


def _close(descriptor: int) -> None:
    with _OPENING:
        if descriptor in _OPEN:  # not in a child that was forked while its thread held the lock: it is the parent's
            _OPEN.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _close_inherited() -> None:
    """In a forked child: closing takes nothing from the parent, which still has the file open."""
    for descriptor in _OPEN:
        os.close(descriptor)
    _OPEN.clear()
    _OPENING.release()


os.register_at_fork(before=_OPENING.acquire, after_in_parent=_OPENING.release, after_in_child=_close_inherited)


def _is_still(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


def _leave_note(descriptor: int, note: bytes, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note, 0)
    except OSError as error:
        raise CaskWriteError(f"{path}: cannot write {len(note)} bytes: {error.strerror}", error.errno) from error


def _acquire(descriptor: int, path: Path, deadline: float, timeout_seconds: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            raise CaskWriteError(
                f"{path}: cannot lock: {error.strerror}. The file system must support flock; on a network file system "
                "that is an option of the mount.",
                error.errno,
            ) from error
        else:
            return
        if time.monotonic() >= deadline:
            holder = _holder(descriptor)
            raise CaskLockedError(
                f"{path}: waited {timeout_seconds:g} s for the writer with process id {holder}. "
                "If that process hangs, end it; the lock goes with it."
            )
        # At random moments: who asks in step with a busy writer would never find the lock free.
        time.sleep(random.uniform(0.5, 1.5) * _POLL_SECONDS)


def _holder(descriptor: int) -> str:
    """Process id of whoever holds the lock: as the kernel tells, else from the note in the file, which may be old."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        locks = []
    for fields in map(str.split, locks):
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place:
            return fields[4]
    return os.pread(descriptor, 256, 0).decode(errors="replace").partition(" ")[0] or "unknown"
