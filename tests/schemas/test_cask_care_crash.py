"""Repair, merge, split and compaction cut short anywhere: done again, they end where an undisturbed run ends."""

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cask_samples import SPEC, make_documents, make_teacher
from crash_model import FailingFiles, Operation, RecordingFiles, crash, put_state
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.files import FileOperations
from logitcask_schemas.cask.merge import merge_casks
from logitcask_schemas.cask.repair import repair_cask
from logitcask_schemas.cask.split import SplitRule, split_cask
from logitcask_schemas.cask.verify import strangers, verify_shards
from logitcask_schemas.errors import CaskWriteError

ONE, OTHER = make_documents([4, 9], 1), make_documents([6, 30], 2)
SHARED = [ONE[0], *make_documents([12], 3)]


def create(path: Path, files: FileOperations | None = None) -> CaskWriter:
    return CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, files=files)


def damaged_cask(folder: Path) -> None:
    with create(folder / "cask") as writer:
        writer.publish(ONE)
        writer.publish(OTHER)
    for document in (ONE[1], OTHER[0]):
        for shard in (folder / "cask" / "shards").glob("*.arrow"):
            content = bytearray(shard.read_bytes())
            if (at := content.find(document.records.head_logprobs_H.tobytes())) >= 0:
                content[at] ^= 1
                shard.write_bytes(bytes(content))


def repair(folder: Path, files: FileOperations) -> None:
    repair_cask(folder / "cask", files=files)


def sources(folder: Path) -> None:
    with create(folder / "one") as writer:
        writer.publish(ONE)
        writer.publish(OTHER)
    with create(folder / "other") as writer:
        writer.publish(SHARED)


def merge(folder: Path, files: FileOperations) -> None:
    merge_casks(folder / "all", [folder / "one", folder / "other"], files=files)


def split(folder: Path, files: FileOperations) -> None:
    split_cask(folder / "one", (folder / "a", folder / "b"), SplitRule(fraction=0.5, seed=0), files=files)


def uncompacted(folder: Path) -> None:
    writer = create(folder / "cask")
    writer.publish(ONE)
    writer.close()
    writer.publish(OTHER)


def compact(folder: Path, files: FileOperations) -> None:
    create(folder / "cask", files).close()


@dataclass(frozen=True)
class Care:
    prepare: Callable[[Path], None]
    run: Callable[[Path, FileOperations], None]
    results: tuple[str, ...]
    documents: int

    def outcome(self, folder: Path) -> dict[Path, bytes]:
        """What the results hold, after requiring that they are sound; without times, quarantine and locks."""
        found = {}
        for name in self.results:
            cask = Cask.open(folder / name)
            assert [problem for report in verify_shards(cask) for problem in report.problems] == []
            assert strangers(cask) == []
            found |= {
                path.relative_to(folder): path.read_bytes()
                for path in (folder / name).rglob("*")
                if path.is_file() and path.name not in ("cask.json", "cask.lock") and "quarantine" not in path.parts
            }
        assert sum(len(Cask.open(folder / name)) for name in self.results) == self.documents
        return found


CARES = {
    "repair": Care(damaged_cask, repair, ("cask",), 2),
    "merge": Care(sources, merge, ("all",), 5),
    "split": Care(sources, split, ("a", "b"), 4),
    "compaction": Care(uncompacted, compact, ("cask",), 4),
}


class Recorded:
    """One undisturbed run with every file operation written down."""

    def __init__(self, care: Care, folder: Path) -> None:
        self.care, self.folder, files = care, folder, RecordingFiles()
        care.prepare(folder)
        self.before = contents(folder)
        care.run(folder, files)
        self.operations = files.operations
        self.expected = care.outcome(folder)

    def require_repeatable(
        self, length: int, reached_disk: Callable[[Operation], bool], surviving: Callable[[int, int], int]
    ) -> None:
        """After a crash at this operation, the sources are as they were and a second run ends where the first did."""
        left = crash(self.operations[:length], self.before, reached_disk=reached_disk, surviving_bytes=surviving)
        put_state(self.folder, left)
        untouched = {path: data for path, data in self.before.items() if path.parts[-3] not in self.care.results}
        self.care.run(self.folder, RecordingFiles())
        assert self.care.outcome(self.folder) == self.expected
        assert all(path.read_bytes() == data for path, data in untouched.items() if "shards" in path.parts)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "cask.lock"}


@pytest.fixture(scope="module", params=list(CARES))
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(CARES[request.param], tmp_path_factory.mktemp(request.param))


def test_every_prefix_of_the_operations(recorded: Recorded) -> None:
    """Names that no sync covers are lost at every other operation and kept at the others; bytes are lost always."""
    assert len(recorded.operations) > 10
    for length in range(len(recorded.operations) + 1):
        recorded.require_repeatable(length, lambda _, kept=length % 2: bool(kept), lambda synced, _: synced)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_torn_writes_and_reordered_names(recorded: Recorded, data: st.DataObject) -> None:
    recorded.require_repeatable(
        data.draw(st.integers(0, len(recorded.operations))),
        lambda _: data.draw(st.booleans()),
        lambda synced, full: data.draw(st.integers(synced, full)),
    )


@pytest.mark.parametrize("name", list(CARES))
def test_no_space_or_a_broken_disk_at_every_operation(name: str, tmp_path: Path) -> None:
    care, n, outcomes = CARES[name], 0, []
    care.prepare(tmp_path / "base")
    while True:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "base", folder)
        files = FailingFiles(n, (errno.ENOSPC, errno.EIO)[n % 2])
        if failure_of(care, folder, files) is None:
            assert not files.failed, "an error of the file system was swallowed"
            outcomes.append(care.outcome(folder))
            break
        assert list(folder.rglob(".tmp-*")) == []
        assert failure_of(care, folder, FailingFiles(10**9, 0)) is None
        outcomes.append(care.outcome(folder))
        n += 1
    assert n > 10
    assert all(outcome == outcomes[0] for outcome in outcomes)


def failure_of(care: Care, folder: Path, files: FailingFiles) -> CaskWriteError | None:
    try:
        care.run(folder, files)
    except CaskWriteError as error:
        return error
    return None
