"""The writers' lock of a cask: one publication, sweep or compaction at a time, across processes and threads.

It is a flock, through filelock. The kernel drops it when its holder dies, even by SIGKILL, so it is never stale;
filelock sees to it that a forked child does not keep it. Temporary files exist only while the lock is held, so any that
a new holder finds belong to crashed writers and may be deleted. Readers take no lock: what they read was immutable
before they could see its name. On a network file system flock must be supported by the mount (NFS since Linux 2.6.12,
Lustre with -o flock).
"""

import os
import random
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from logitcask_schemas.cask.format.layout import LOCK_NAME
from logitcask_schemas.cask.storage.files import writes_explained
from logitcask_schemas.cask.storage.publication_log import PublicationLog
from logitcask_schemas.errors import CaskLockedError, CaskNotFoundError, CaskWriteError

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.005, 0.06
"""Seconds between two attempts, which cost 0.2 ms of CPU each: those of 64 writers, all at the shortest pause, left the
holder no time to end."""
_PAUSE_OF_WAIT: Final = 0.1
"""A pause as a share of what was waited: nobody who has just come waits much longer than the holder works."""
_NOTE_BYTES: Final = 256
_ADVICE: Final = (
    "The file system must have room and support flock; on a network file system that is an option of the mount"
)


@contextmanager
def writers_lock(
    cask: Path, *, holder: str, timeout_seconds: float, log: PublicationLog | None = None
) -> Iterator[bool]:
    """Hold the cask's lock.

    Yields:
        Whether nobody else has held it since this holder last did, or, with a log, has done anything.

    Args:
        cask: The cask's directory, which must exist.
        holder: A name no other writer uses; left in the lock file.
        timeout_seconds: How long to wait for another writer.
        log: What the holder knows of other writers' publications. Without one the holder may do anything, and writers
            look at the whole cask afterwards.

    Raises:
        CaskNotFoundError: The directory is missing.
        CaskLockedError: Another process held it all that time; the message names its process id.
        CaskWriteError: The lock file cannot be opened or written, such as on a read-only or full disk, or something
            else has its name.
    """
    # Importing it takes 30 ms, which readers need not pay.
    from filelock import FileLock, Timeout

    path, note = cask / LOCK_NAME, f"{os.getpid()} {holder}\n".encode()
    undisturbed, held = False, -1

    def leave_note(descriptor: int) -> None:
        nonlocal undisturbed, held
        held = descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CaskWriteError(
                f"{path}: cannot lock: it is no regular file. Remove it; the next writer makes it anew."
            )
        if log is not None:
            log.begin(descriptor)
            undisturbed = log.unseen == []
            return
        undisturbed = os.pread(descriptor, _NOTE_BYTES, 0) == note
        if not undisturbed:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note, 0)

    if not cask.is_dir():
        # Taking the lock would make it anew, and what is put back with `mv` would end inside of it.
        raise CaskNotFoundError(f"{cask}: the cask's folder is missing. Put it back, or restore it from a copy.")
    lock = FileLock(
        path,
        timeout=0,
        thread_local=False,
        fallback_to_soft=False,
        preserve_lock_file=True,
        on_acquired=leave_note,
    )
    began = time.monotonic()
    with writes_explained(f"{path}: cannot lock", _ADVICE):
        while not lock.is_locked:
            try:
                lock.acquire()
            except Timeout as error:
                waited = time.monotonic() - began
                if waited >= timeout_seconds:
                    raise CaskLockedError(
                        f"{path}: waited {timeout_seconds:g} s for the writer with process id {_holder(path)}. "
                        "If that process hangs, end it; the lock goes with it."
                    ) from error
                # Each at its own pace: who asks in step with a busy writer would never find the lock free.
                pause = random.uniform(0.5, 1.5) * min(max(_PAUSE_OF_WAIT * waited, _SHORTEST_PAUSE), _LONGEST_PAUSE)
                time.sleep(min(pause, timeout_seconds - waited))
    try:
        yield undisturbed
        if log is not None:
            log.end(held)
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Process id of whoever holds the lock: as the kernel tells, else from the note in the file, which may be old."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return "unknown"
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        try:
            locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        except OSError:  # not Linux
            locks = []
        for fields in map(str.split, locks):
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place:
                return fields[4]
        return file.read(_NOTE_BYTES).decode(errors="replace").partition(" ")[0] or "unknown"
