"""Repair, merge, split, compaction, import and export cut short anywhere.

Readers get right records at every instant, and done again, all of it ends where an undisturbed run ends.
"""

import errno
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.directory import write_index
from logitcask_schemas.cask.documents import DocumentTable
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.integrity.replacement import Replacement
from logitcask_schemas.errors import CaskError, CaskWriteError
from tests.support.schemas.care_cases import CARES, Care, Recorded, contents, require_right, seen_before
from tests.support.schemas.crash_model import FailingFiles, put_state


@pytest.fixture(scope="module", params=list(CARES))
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(CARES[request.param], tmp_path_factory.mktemp("care"))


def test_every_prefix_of_the_operations(recorded: Recorded) -> None:
    """Names that no sync covers are lost at every other operation and kept at the others; bytes are lost always."""
    states = 0
    for _ in recorded.crashes(lambda _, length: bool(length % 2), lambda synced, _: synced):
        recorded.require_right_readers()
        recorded.require_repeatable()
        states += 1
    assert states > 5


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_torn_writes_and_reordered_names(recorded: Recorded, data: st.DataObject) -> None:
    recorded.crash(
        data.draw(st.integers(0, len(recorded.operations))),
        lambda _: data.draw(st.booleans()),
        lambda synced, full: data.draw(st.integers(synced, full)),
    )
    recorded.require_right_readers()
    recorded.require_repeatable()


def table_before_entries() -> dict[str, Any]:
    """A new reader then asks a damaged file what it holds."""
    right = Replacement.take_entries_away

    def wrong(self: Replacement) -> None:
        self.write_table()
        right(self)

    return {"take_entries_away": wrong}


def table_before_files() -> dict[str, Any]:
    """A reader that knows the damaged shards still then asks their files what they hold."""
    right = Replacement.take_files_away

    def wrong(self: Replacement, strange: list[str]) -> None:
        self.write_table()
        right(self, strange)

    return {"take_files_away": wrong}


def index_before_entries() -> dict[str, Any]:
    """A damaged entry file that the index no longer repeats then keeps the cask from opening."""
    right = Replacement.take_entries_away

    def wrong(self: Replacement) -> None:
        write_index(self._files, self._path, self.entries.values())
        right(self)

    return {"take_entries_away": wrong}


def stopped(_: Replacement) -> NoReturn:
    raise KeyboardInterrupt


def notices(recorded: Recorded) -> bool:
    """Whether a reader meets something wrong at any instant."""
    for _ in recorded.crashes(lambda *_: True, lambda _, full: full):
        try:
            recorded.require_right_readers()
        except (AssertionError, CaskError):
            return True
    return False


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("repair", None),
        ("repair", table_before_entries),
        ("repair", table_before_files),
        ("repair of ruins", None),
        ("repair of ruins", index_before_entries),
    ],
)
def test_negative_control_another_order_of_repair_is_noticed(
    name: str, order: Callable[[], dict[str, Any]] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right order passes; where the table or the index is replaced too early, some instant shows it."""
    for step, instead in (order() if order else {}).items():
        monkeypatch.setattr(Replacement, step, instead)
    assert notices(Recorded(CARES[name], tmp_path)) == (order is not None)


def test_a_repair_cut_short_before_the_table_is_finished_by_the_next(tmp_path: Path, monkeypatch: Any) -> None:
    CARES["repair"].prepare(tmp_path)
    cask = tmp_path / "cask"
    with monkeypatch.context() as patch:
        patch.setattr(Replacement, "write_table", stopped)
        with pytest.raises(KeyboardInterrupt):
            repair_cask(cask)
    names = [entry.name for entry in Cask.open(cask).entries]
    table = DocumentTable.open(cask)
    assert table is not None
    assert not {*table.shard_names()} <= {*names}
    report = repair_cask(cask)
    assert (report.problems, report.quarantine, report.stale_table) == ([], None, True)
    table = DocumentTable.open(cask)
    assert table is not None
    assert table.covers_exactly(names)
    assert not repair_cask(cask).stale_table


@pytest.mark.parametrize("case", list(CARES))
def test_no_space_or_a_broken_disk_at_every_operation(case: str, tmp_path: Path) -> None:
    """A clear error, no temporary files, right records for readers, and the next run ends as if nothing had been.

    Every operation meets one of the two errors, and writes meet either.
    """
    care, folder, left, failed = CARES[case], tmp_path, set[object](), set[tuple[str, int]]()
    care.prepare(folder)
    base, before = contents(folder), {name: seen_before(folder / name) for name in care.results}
    expected = outcome_of_another_run(care, folder)
    for n in itertools.count():
        code = (errno.ENOSPC, errno.EIO)[n // 2 % 2]
        put_state(folder, base)
        files = FailingFiles(n, code)
        error = failure_of(care, folder, files)
        if error is None:
            assert not files.failed, "an error of the file system was swallowed"
            assert care.outcome(folder) == expected
            assert {"open", "write", "sync", "rename", "sync directory"} <= {kind for kind, _ in failed}
            assert {("write", errno.ENOSPC), ("write", errno.EIO)} <= failed
            return
        assert error.errno == code
        assert list(folder.rglob(".tmp-*")) == []
        if (state := state_of(folder)) not in left:
            left.add(state)
            require_right(care, folder, before)
            assert outcome_of_another_run(care, folder) == expected
        failed.add((files.failed, code))


def state_of(folder: Path) -> frozenset[tuple[str, bytes]]:
    """What lies there, without the names of quarantines and the times in manifests: equal states have equal futures."""
    return frozenset(
        (re.sub(r"quarantine/[^/]+", "quarantine", str(path)), b"" if path.name == "cask.json" else data)
        for path, data in contents(folder).items()
    )


def outcome_of_another_run(care: Care, folder: Path) -> dict[Path, object]:
    assert failure_of(care, folder, FailingFiles(10**9, 0)) is None
    return care.outcome(folder)


def failure_of(care: Care, folder: Path, files: FailingFiles) -> CaskWriteError | None:
    try:
        care.run(folder, files)
    except CaskWriteError as error:
        return error
    return None
