"""One training run at a time in an output folder.

Every process of a run holds a lock of its own: the workers of a killed torchrun live on and go on writing, so a new
run must be kept out as long as any of them lives, and told its process id. The kernel drops a lock (flock) with its
process, so a lock is never stale. On a network file system flock must be supported by the mount.

The main process asks first. It takes its own lock, then looks whether any other is held; two runs that begin at once
cannot both get the first. Only then do the others take theirs.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from logitcask_consumer.processes import processes, raise_together
from logitcask_consumer.run_document import RunFolderError
from logitcask_schemas.errors import LogitcaskError

LOCKS_NAME: Final = ".running"
"""Folder of the locks, in the output folder; it goes with the run."""
_HELD: Final[set[int]] = set()
"""Descriptors of the locks that this process holds."""


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
    made, descriptor, problem = [], None, None
    path = output / LOCKS_NAME / str(own.process_index)
    own.wait_for_everyone()  # an earlier run of this session has let go
    try:
        if own.is_main_process:
            try:
                made = _make(output)
                descriptor = _take(path)
                _require_no_other(output, path)
            except (OSError, LogitcaskError) as error:
                problem = error
        raise_together(_explained(output, problem))
        problem = None
        if not own.is_main_process:
            try:
                descriptor = _take(path)
            except (OSError, LogitcaskError) as error:
                problem = error
        raise_together(_explained(output, problem))
        yield
    finally:
        if descriptor is not None:
            _release(descriptor, path)
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


def _take(path: Path) -> int:
    """Lock a file with a note of who holds it; returns its descriptor.

    Raises:
        RunBusyError: somebody holds it.
        OSError: it cannot be opened or locked.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(descriptor, path):
                note = {"pid": os.getpid(), "host": socket.gethostname()}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(note).encode(), 0)
                _HELD.add(descriptor)
                return descriptor
        except BlockingIOError:
            note_text = _note(descriptor)
            os.close(descriptor)
            raise RunBusyError(_busy(path.parent.parent, [note_text])) from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it meanwhile: lock the file that is there now


def _require_no_other(output: Path, own: Path) -> None:
    """Raise RunBusyError where any other lock of the folder is held."""
    holders = []
    for path in sorted(own.parent.iterdir()):
        if path == own:
            continue
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()  # of a process that was killed
            except BlockingIOError:
                holders.append(_note(descriptor))
            finally:
                os.close(descriptor)
    if holders:
        raise RunBusyError(_busy(output, holders))


def _busy(output: Path, holders: list[str]) -> str:
    return (
        f"{output} is in use by a training run: {', '.join(holders)}. Wait for it, or end it; workers that outlive "
        "their launcher must be ended too"
    )


def _note(descriptor: int) -> str:
    try:
        note = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {note['pid']} on {note['host']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"


def _is_still(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


def _release(descriptor: int, path: Path) -> None:
    with suppress(OSError):
        path.unlink()
    _HELD.discard(descriptor)
    os.close(descriptor)


def _close_inherited() -> None:
    """In a forked child, such as a DataLoader worker: it must not hold the lock when the trainer is gone."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_inherited)
