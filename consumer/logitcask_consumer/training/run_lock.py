"""One training run at a time in an output folder.

Every process of a run holds a lock of its own: the workers of a killed torchrun live on and go on writing, so a new
run must be kept out as long as any of them lives, and told its process id. The kernel drops a lock (flock, through
filelock) with its process, so a lock is never stale; a forked child, such as a DataLoader worker, does not keep it. On
a network file system flock must be supported by the mount.

The main process asks first. It takes its own lock, then looks whether any other is held; two runs that begin at once
cannot both get the first. Only then do the others take theirs.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from logitcask_consumer.processes import processes, raise_together
from logitcask_consumer.run_document import RunFolderError
from logitcask_schemas.errors import LogitcaskError

LOCKS_NAME: Final = ".running"
"""Folder of the locks, in the output folder; it goes with the run."""


class RunBusyError(LogitcaskError, RuntimeError):
    """Another run, or what is left of one, writes into the output folder."""


@contextmanager
def hold_run(output: Path) -> Iterator[None]:
    """Keep other runs out of an output folder, which is made; where nothing came to be in it, it goes again.

    Raises:
        RunBusyError: processes of another run live; the message names them.
        RunFolderError: the folder cannot be made or written.
    """
    own = processes()
    made, lock, problem = [], None, None
    path = output / LOCKS_NAME / str(own.process_index)
    own.wait_for_everyone()  # an earlier run of this session has let go
    try:
        if own.is_main_process:
            try:
                made = _make(output)
                lock = _take(path)
                _require_no_other(output, path)
            except (OSError, LogitcaskError) as error:
                problem = error
        raise_together(_explained(output, problem))
        problem = None
        if not own.is_main_process:
            try:
                lock = _take(path)
            except (OSError, LogitcaskError) as error:
                problem = error
        raise_together(_explained(output, problem))
        yield
    finally:
        if lock is not None:
            with suppress(OSError):
                path.unlink()
            lock.release()
        for folder in (output / LOCKS_NAME, *made):
            with suppress(OSError):  # it is in use, or gone
                folder.rmdir()


def _explained(output: Path, error: Exception | None) -> Exception | None:
    if error is None or isinstance(error, LogitcaskError):
        return error
    reason = f"{output} is a file" if output.is_file() else f"{error.strerror if isinstance(error, OSError) else error}"
    return RunFolderError(
        f"the output folder {output} cannot be made or written: {reason}. Name a folder that can (--output)"
    )


def _make(output: Path) -> list[Path]:
    """Make the folder of the locks with all that it lies in; returns what was missing, innermost first."""
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    (output / LOCKS_NAME).mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path) -> FileLock:
    """Lock a file with a note of who holds it.

    Raises:
        RunBusyError: somebody holds it.
        OSError: it cannot be opened or locked.
    """

    def leave_note(descriptor: int) -> None:
        note = {"pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)

    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False, on_acquired=leave_note)
    try:
        lock.acquire()
    except Timeout:
        raise RunBusyError(_busy(path.parent.parent, [_holder(path)])) from None
    return lock


def _require_no_other(output: Path, own: Path) -> None:
    """Raise RunBusyError where any other lock of the folder is held."""
    holders = []
    for path in sorted(own.parent.iterdir()):
        if path == own:
            continue
        try:
            with FileLock(path, blocking=False, fallback_to_soft=False):
                path.unlink(missing_ok=True)  # of a process that was killed
        except Timeout:
            holders.append(_holder(path))
    if holders:
        raise RunBusyError(_busy(output, holders))


def _busy(output: Path, holders: list[str]) -> str:
    return (
        f"{output} is in use by a training run: {', '.join(holders)}. Wait for it, or end it; workers that outlive "
        "their launcher must be ended too"
    )


def _holder(path: Path) -> str:
    try:
        note = json.loads(path.read_bytes())
        return f"process {note['pid']} on {note['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"
