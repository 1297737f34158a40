"""The writers' lock: excludes processes and threads, dies with its holder, survives forks, and harms no other file."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from logitcask_schemas.cask.storage.lock import writers_lock
from logitcask_schemas.errors import CaskLockedError, CaskNotFoundError, CaskWriteError

fork = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def is_free(cask: Path) -> bool:
    try:
        with writers_lock(cask, holder="probe", timeout_seconds=0):
            return True
    except CaskLockedError:
        return False


def sleeping_child() -> int:
    """A forked process that does nothing until it is killed, like a loader's worker."""
    if (child := os.fork()) == 0:
        signal.pause()
        os._exit(0)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_one_at_a_time_and_free_afterwards(tmp_path: Path) -> None:
    with writers_lock(tmp_path, holder="one", timeout_seconds=0) as undisturbed:
        assert not undisturbed
        assert not is_free(tmp_path)
        with pytest.raises(CaskLockedError, match=rf"process id {os.getpid()}\."):
            writers_lock(tmp_path, holder="other", timeout_seconds=0).__enter__()
    with writers_lock(tmp_path, holder="one", timeout_seconds=0) as undisturbed:
        assert undisturbed
    assert is_free(tmp_path)
    with writers_lock(tmp_path, holder="one", timeout_seconds=0) as undisturbed:
        assert not undisturbed, "the probe held it meanwhile"


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """What is put back with `mv` would end inside of it."""
    for gone in (tmp_path / "cask", tmp_path / "file"):
        (tmp_path / "file").touch()
        with (
            pytest.raises(CaskNotFoundError, match="folder is missing"),
            writers_lock(gone, holder="a", timeout_seconds=0),
        ):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_an_error_inside_releases_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside"), writers_lock(tmp_path, holder="one", timeout_seconds=0):
        raise RuntimeError("inside")
    assert is_free(tmp_path)


@fork
def test_a_child_forked_meanwhile_does_not_keep_it(tmp_path: Path) -> None:
    """A loader's workers are forked while a thread publishes; they live for hours."""
    with writers_lock(tmp_path, holder="one", timeout_seconds=0):
        child = sleeping_child()
        assert not is_free(tmp_path), "and the child's closing takes nothing from the parent"
    try:
        assert is_free(tmp_path)
    finally:
        end(child)


HOLDER = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from logitcask_schemas.cask.storage.lock import writers_lock
with writers_lock(Path(sys.argv[1]), holder="one", timeout_seconds=0):
    child = os.fork()
    if child == 0:
        os.close(1)
        signal.pause()
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_holders_child_does_not_keep_it(tmp_path: Path) -> None:
    folders = [folder for folder in sys.path if folder]
    killed = subprocess.run(
        [sys.executable, "-c", HOLDER, str(tmp_path), *folders], stdout=subprocess.PIPE, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    try:
        assert is_free(tmp_path)
    finally:
        os.kill(int(killed.stdout), signal.SIGKILL)


@fork
def test_negative_control_a_plain_flock_is_kept_by_a_forked_child(tmp_path: Path) -> None:
    """What the two tests above would meet without the care they test."""
    descriptor = os.open(tmp_path / "cask.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    child = sleeping_child()
    os.close(descriptor)
    try:
        assert not is_free(tmp_path)
    finally:
        end(child)


@fork
def test_a_child_that_leaves_its_parents_lock_takes_nothing_away(tmp_path: Path) -> None:
    """Forked by the very thread that holds it, and not ended at once."""
    with writers_lock(tmp_path, holder="one", timeout_seconds=0):
        entered = writers_lock(tmp_path / "..", holder="other", timeout_seconds=0)
        entered.__enter__()
        if (child := os.fork()) == 0:
            entered.__exit__(None, None, None)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not is_free(tmp_path / "..")
        entered.__exit__(None, None, None)
        assert is_free(tmp_path / "..")


def open_locks() -> int:
    """How many lock files this process has open."""
    links = (Path("/proc/self/fd", descriptor) for descriptor in os.listdir("/proc/self/fd"))  # noqa: PTH208
    return sum(link.is_symlink() and os.readlink(link).endswith("cask.lock") for link in links)  # noqa: PTH115


@fork
def test_forks_and_locks_of_many_threads_do_not_get_stuck(tmp_path: Path) -> None:
    """Nothing is left open, and no child hangs on a lock that a thread of its parent held at the fork."""
    assert is_free(tmp_path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    stop = threading.Event()

    def work(name: str) -> None:
        while not stop.is_set():
            with writers_lock(tmp_path, holder=name, timeout_seconds=30):
                pass

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            if (child := os.fork()) == 0:
                with writers_lock(tmp_path, holder="child", timeout_seconds=30):
                    os._exit(open_locks())
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert is_free(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_whoever_waited_for_a_removed_lock_locks_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, refused, flock = [], [], fcntl.flock

    def counted(descriptor: int, operation: int) -> None:
        try:
            flock(descriptor, operation)
        except BlockingIOError:
            refused.append(descriptor)
            raise

    monkeypatch.setattr("fcntl.flock", counted)
    with writers_lock(tmp_path, holder="first", timeout_seconds=0):

        def wait() -> None:
            with writers_lock(tmp_path, holder="waiting", timeout_seconds=30):
                order.append("waiting")

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not refused:
            pass
        (tmp_path / "cask.lock").unlink()
        new = writers_lock(tmp_path, holder="second", timeout_seconds=0)
        new.__enter__()
    waiting.join(0.2)
    assert waiting.is_alive(), "the old file is free, but the second writer is inside"
    order.append("second")
    new.__exit__(None, None, None)
    waiting.join()
    assert order == ["second", "waiting"]


def attempts(cask: Path, seconds: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of a writer that waits so long, by a clock of its own, for another one."""
    clock, count = [0.0], [0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return clock[0]

        @staticmethod
        def sleep(pause: float) -> None:
            clock[0] += pause
            count[0] += 1

    with writers_lock(cask, holder="one", timeout_seconds=0):
        monkeypatch.setattr("logitcask_schemas.cask.storage.lock.time", Clock)
        with pytest.raises(CaskLockedError, match=f"waited {seconds:g} s"):
            writers_lock(cask, holder="other", timeout_seconds=seconds).__enter__()
    monkeypatch.undo()
    assert clock[0] == pytest.approx(seconds)
    return count[0]


def test_many_that_wait_leave_the_holder_its_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty-four that ask every 5 ms, at 0.2 ms of CPU each time, need more than two cores for that alone."""
    assert attempts(tmp_path, 10, monkeypatch) < 64 * 10  # pauses of 60 ms and, at first, less
    # Whoever waits for a holder of a few milliseconds asks a few times in these.
    assert attempts(tmp_path, 0.02, monkeypatch) > 2
    monkeypatch.setattr("logitcask_schemas.cask.storage.lock._LONGEST_PAUSE", 0.005)
    assert attempts(tmp_path, 10, monkeypatch) > 64 * 10  # the control: as it was


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_something_else_under_its_name_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    """Somebody else's cask may bring a link to a file of ours; the holder's note must not go there."""
    path, other = tmp_path / "cask.lock", tmp_path / "thesis.tex"
    if "link" in kind:
        path.symlink_to(other)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    if kind == "link":
        other.write_text("years of work")
    with pytest.raises(CaskWriteError, match=r"cask\.lock: cannot"):
        writers_lock(tmp_path, holder="one", timeout_seconds=0).__enter__()
    assert other.exists() == (kind == "link")
    assert kind != "link" or other.read_text() == "years of work"


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX:
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(CaskWriteError, match=r"No locks available\. The file system must have room and support flock"):
        writers_lock(tmp_path, holder="one", timeout_seconds=0).__enter__()


def test_the_holder_is_named_as_the_kernel_tells_not_by_an_old_note(tmp_path: Path) -> None:
    with (tmp_path / "cask.lock").open("w") as lock:
        lock.write("1 an older holder\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (
            pytest.raises(CaskLockedError, match=rf"process id {os.getpid()}\."),
            writers_lock(tmp_path, holder="b" * 32, timeout_seconds=0.05),
        ):
            pass
