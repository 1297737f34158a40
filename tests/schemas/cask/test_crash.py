"""A crash at any instant of a publication leaves the old state or the new one, and loses nothing acknowledged."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.errors import CaskError, CaskNotFoundError
from tests.support.schemas.cask_samples import SPEC, make_document, make_documents, make_teacher, unlisted
from tests.support.schemas.crash_model import ForgetfulFiles, Operation, RecordingFiles, crash

OLD = make_documents([4, 9], 1)
NEW = make_documents([6, 30], 2)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "cask.lock"}


class Publication:
    """One recorded run of: open a cask, publish, close (which rewrites the index)."""

    def __init__(self, folder: Path, files: RecordingFiles, *, create: bool = False) -> None:
        self.path = folder / "cask"
        if not create:
            with CaskWriter.create(self.path, teacher=make_teacher(), capture=SPEC) as writer:
                writer.publish(OLD)
        self.before = contents(folder) if self.path.exists() else {}
        writer = CaskWriter.create(self.path, teacher=make_teacher(), capture=SPEC, files=files)
        writer.publish(NEW)
        self.acknowledged = len(files.operations)
        writer.close()
        self.operations = files.operations
        self.after = contents(folder)

    def state_after(
        self, length: int, reached_disk: Callable[[Operation], bool], surviving: Callable[[int, int], int]
    ) -> None:
        """Put the folder into a state a crash after `length` operations may leave."""
        shutil.rmtree(self.path, ignore_errors=True)
        (self.path / "shards").mkdir(parents=True)
        left = crash(self.operations[:length], self.before, reached_disk=reached_disk, surviving_bytes=surviving)
        for path, data in left.items():
            path.write_bytes(data)

    def require_old_or_new(self, length: int, *, old: list) -> None:
        """The reader sees one of the two states, sound; the next writer repairs and completes it."""
        try:
            cask = Cask.open(self.path)
        except CaskNotFoundError:
            assert not self.before, "the cask was there before"
            assert length < self.acknowledged
        else:
            ids = {identity.tobytes() for identity in cask.document_ids()}
            assert ids in ({document.id for document in old}, {document.id for document in [*old, *NEW]})
            assert len(ids) > len(old) or length < self.acknowledged, "an acknowledged publication was lost"
            for report in verify_shards(cask):
                assert report.problems == []
        with CaskWriter.create(self.path, teacher=make_teacher(), capture=SPEC) as writer:
            writer.publish(NEW)
        assert unlisted(Cask.open(self.path)) == []
        files = {path.name: data for path, data in contents(self.path).items() if path.name != "cask.json"}
        expected = {path.name: data for path, data in self.after.items() if path.name != "cask.json"}
        assert files == expected, "not byte-equal to an uninterrupted run"


def nothing(_: Operation) -> bool:
    return False


def everything(_: Operation) -> bool:
    return True


@pytest.mark.parametrize("create", [False, True], ids=["existing cask", "new cask"])
@pytest.mark.parametrize("reached_disk", [nothing, everything])
@pytest.mark.parametrize("surviving", [lambda synced, _: synced, lambda _, full: full], ids=["synced", "all bytes"])
def test_every_prefix_of_the_operations(tmp_path: Path, create: bool, reached_disk, surviving) -> None:
    publication = Publication(tmp_path, RecordingFiles(), create=create)
    assert len(publication.operations) > 20
    for length in range(len(publication.operations) + 1):
        publication.state_after(length, reached_disk, surviving)
        publication.require_old_or_new(length, old=[] if create else OLD)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Publication]:
    """One publication into an existing cask and one that creates it."""
    return {
        create: Publication(tmp_path_factory.mktemp("crash"), RecordingFiles(), create=create)
        for create in (False, True)
    }


@settings(max_examples=75, deadline=None)
@given(data=st.data(), create=st.booleans())
def test_torn_writes_and_reordered_names(recorded: dict[bool, Publication], data, create: bool) -> None:
    publication = recorded[create]
    length = data.draw(st.integers(0, len(publication.operations)))
    publication.state_after(
        length,
        lambda _: data.draw(st.booleans()),
        lambda synced, full: data.draw(st.integers(synced, full)),
    )
    publication.require_old_or_new(length, old=[] if create else OLD)


def survives_every_crash(publication: Publication) -> bool:
    """Whether old-or-new holds at every instant, with either kind of name lost or kept and unsynced bytes gone."""
    for length in range(len(publication.operations) + 1):
        for kept in ({".json"}, {".arrow"}, {".json", ".arrow"}):

            def reached_disk(change: Operation, kept: set[str] = kept) -> bool:
                return (change.target or change.path).suffix in kept

            publication.state_after(length, reached_disk, lambda synced, _: synced)
            try:
                publication.require_old_or_new(length, old=OLD)
            except (AssertionError, CaskError):
                return False
    return True


@pytest.mark.parametrize("left_out", ["nothing", "sync", "sync directory"])
def test_negative_control_without_syncs_the_model_finds_damage(tmp_path: Path, left_out: str) -> None:
    """The same publication with one kind of sync left out must fail, or the tests above prove nothing."""
    files = ForgetfulFiles(left_out)
    publication = Publication(tmp_path, files)
    publication.operations = files.kept()
    assert survives_every_crash(publication) == (left_out == "nothing")


def test_a_shard_costs_four_syncs(tmp_path: Path) -> None:
    files = RecordingFiles()
    writer = CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC, files=files)
    files.operations.clear()
    writer.publish(NEW)
    kinds = [operation.kind for operation in files.operations if operation.kind != "write"]
    assert kinds == ["create", "sync", "rename", "sync directory"] * 2


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher
from logitcask_schemas.cask import CaskWriter
with CaskWriter.create(Path(sys.argv[1]), teacher=make_teacher(), capture=SPEC) as writer:
    print("ready", flush=True)
    for batch in range(40):
        writer.publish(make_documents([5, 60, 300], batch))
        print(batch, flush=True)
"""


def start_child(path: Path) -> subprocess.Popen[str]:
    folders = [folder for folder in sys.path if folder]
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), *folders], stdout=subprocess.PIPE, text=True)


def test_kill_minus_nine_at_random_times(tmp_path: Path) -> None:
    """A real process, really killed: what it acknowledged stays, and the finished cask equals an uninterrupted one."""
    assert start_child(tmp_path / "whole").communicate()[0].count("\n") == 41
    for attempt in range(8):
        child = start_child(tmp_path / "killed")
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.005 * attempt)
        child.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in child.communicate()[0].splitlines()]
        cask = Cask.open(tmp_path / "killed")
        for batch in acknowledged:
            assert cask.find(make_document(5, batch * 1000).id) is not None
    start_child(tmp_path / "killed").communicate()
    killed, whole = contents(tmp_path / "killed"), contents(tmp_path / "whole")
    assert {path.name: data for path, data in killed.items() if path.name != "cask.json"} == {
        path.name: data for path, data in whole.items() if path.name != "cask.json"
    }
