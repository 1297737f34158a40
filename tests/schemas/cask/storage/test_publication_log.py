"""The log of publications in the lock file: what it tells, and when it says that it cannot tell."""

import os
from pathlib import Path

import pytest

from logitcask_schemas.cask.storage.publication_log import PublicationLog

NAMES = [f"{number:032x}" for number in range(4)]


@pytest.fixture
def lock_file(tmp_path: Path):
    descriptor = os.open(tmp_path / "cask.lock", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def hold(log: PublicationLog, descriptor: int, *names: str) -> list[str] | None:
    """What a holder is told that publishes these."""
    log.begin(descriptor)
    for name in names:
        log.note(name)
    log.end(descriptor)
    return log.unseen


def test_each_is_told_what_others_published(lock_file: int) -> None:
    one, two = PublicationLog("one"), PublicationLog("two")
    assert hold(one, lock_file, NAMES[0]) is None, "nothing is known at first"
    assert hold(two, lock_file, NAMES[1]) is None
    assert hold(one, lock_file) == [NAMES[1]]
    assert hold(one, lock_file, NAMES[2], NAMES[3]) == []
    assert hold(one, lock_file) == []
    assert hold(two, lock_file) == NAMES[2:]


def test_a_note_of_somebody_else_ends_it(lock_file: int) -> None:
    one, two = PublicationLog("one"), PublicationLog("two")
    hold(one, lock_file, NAMES[0])
    hold(two, lock_file)
    os.ftruncate(lock_file, 0)
    os.pwrite(lock_file, b"4711 repair-00\n", 0)
    assert hold(one, lock_file, NAMES[1]) is None
    assert hold(two, lock_file) is None, "the new log is not the one it knew"
    assert hold(one, lock_file) == []


def test_a_holder_that_did_not_end_leaves_it_open(lock_file: int) -> None:
    one, two = PublicationLog("one"), PublicationLog("two")
    hold(one, lock_file)
    hold(two, lock_file)
    one.begin(lock_file)
    assert hold(two, lock_file) is None
    assert hold(one, lock_file) is None


def test_half_a_line_is_nobodys(lock_file: int) -> None:
    """Of a holder that died while it wrote, whose head says open; here the head claims that all is well."""
    one, two = PublicationLog("one"), PublicationLog("two")
    hold(one, lock_file, NAMES[0])
    hold(two, lock_file)
    os.pwrite(lock_file, b"0123", os.fstat(lock_file).st_size)
    assert hold(two, lock_file, NAMES[1]) == []
    assert hold(one, lock_file) == [NAMES[1]]


def test_the_head_tells_who_holds_it(lock_file: int) -> None:
    log = PublicationLog("one")
    log.begin(lock_file)
    assert os.pread(lock_file, 256, 0).split()[:2] == [str(os.getpid()).encode(), b"one"]


def test_a_full_disk_leaves_it_open(lock_file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = PublicationLog("one"), PublicationLog("two")
    hold(two, lock_file)
    hold(one, lock_file)
    one.begin(lock_file)
    one.note(NAMES[0])
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        one.end(lock_file)
    assert hold(two, lock_file) is None
