"""No space, broken disks: a clear error, nothing left behind, the cask as it was, and the next attempt works."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_schemas.errors import CaskNotFoundError, CaskWriteError
from tests.support.schemas.care_cases import import_, merge_copies, split
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher, unlisted
from tests.support.schemas.crash_model import FailingFiles

OLD, NEW = make_documents([4, 9], 1), make_documents([6, 30], 2)


def publish_error(writer: CaskWriter) -> CaskWriteError | None:
    try:
        writer.publish(NEW)
    except CaskWriteError as error:
        return error
    return None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failure_at_every_operation(tmp_path: Path, code: int) -> None:
    n, kinds = 0, set()
    while True:
        path = tmp_path / str(n)
        with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC) as writer:
            writer.publish(OLD)
        files = FailingFiles(10**9, code)
        writer = CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, files=files)
        files.remaining = n
        error = publish_error(writer)
        if error is None:
            assert not files.failed
            break
        assert error.errno == code
        assert isinstance(error, OSError)
        assert str(path) in str(error)
        assert ("Free some space" in str(error)) == (code == errno.ENOSPC)
        kinds.add(files.failed)
        cask = Cask.open(path)
        # Once the entry has its name, only its durability is in doubt; until then the cask is as before.
        assert len(cask) == 2 or files.failed == "sync directory"
        assert not [file for file in path.rglob("*") if file.name.startswith(".tmp-")]
        assert unlisted(cask) == [] or files.failed == "sync directory"
        writer.publish(NEW)
        assert len(Cask.open(path)) == 4
        assert not [problem for report in verify_shards(Cask.open(path)) for problem in report.problems]
        n += 1
    assert kinds == {"open", "write", "sync", "rename", "sync directory"}


LIMITED = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher
from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.errors import CaskWriteError
writer = CaskWriter.create(Path(sys.argv[1]), teacher=make_teacher(), capture=SPEC)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    writer.publish(make_documents([4000], 3))
except CaskWriteError as error:
    print("refused", error.errno)
writer.publish(make_documents([30], 3))
"""


def test_a_real_file_system_that_refuses(tmp_path: Path) -> None:
    """The operating system's own refusal in the middle of a write, through Arrow and the buffered file."""
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), *(folder for folder in sys.path if folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"refused {errno.EFBIG}\n"
    assert len(Cask.open(tmp_path)) == 1
    assert unlisted(Cask.open(tmp_path)) == []


CARE_LIMITED = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from tests.support.schemas.care_cases import import_, merge_copies, split
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_schemas.errors import CaskWriteError
run = {"import": import_, "merge": merge_copies, "split": split}[sys.argv[2]]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    run(Path(sys.argv[1]), LocalFiles())
except CaskWriteError as error:
    print("refused", error.errno)
"""


@pytest.mark.parametrize(("care", "results"), [("import", ["cask"]), ("merge", ["all"]), ("split", ["a", "b"])])
def test_whole_casks_on_a_real_file_system_that_refuses(tmp_path: Path, care: str, results: list[str]) -> None:
    """Each meets a shard that does not fit: no half copy passes for a cask, and it goes on when there is room."""
    small, large = make_documents([4, 9], 1), make_documents([4000, 4100, 4200, 4300], 3)
    for name, carrier in (("one", "arrow"), ("other", "arrow"), ("shipped", "zarr")):
        with CaskWriter.create(tmp_path / name, teacher=make_teacher(), capture=SPEC, carrier=carrier) as writer:
            for documents in [small, large] if name != "other" else [small]:
                writer.publish(documents)
    folders = [folder for folder in sys.path if folder]
    child = [sys.executable, "-c", CARE_LIMITED, str(tmp_path), care, *folders]
    assert subprocess.run(child, capture_output=True, text=True, check=True).stdout == f"refused {errno.EFBIG}\n"
    assert list(tmp_path.rglob(".tmp-*")) == []
    for name in results:
        if care == "import":
            with pytest.raises(CaskNotFoundError, match="has not finished"):
                Cask.open(tmp_path / name)
        else:
            cask = Cask.open(tmp_path / name)
            assert len(cask) < 6
            assert unlisted(cask) == []
            assert not [problem for report in verify_shards(cask) for problem in report.problems]
    {"import": import_, "merge": merge_copies, "split": split}[care](tmp_path, LocalFiles())
    done = [Cask.open(tmp_path / name) for name in results]
    assert sum(map(len, done)) == 6
    assert not [problem for cask in done for report in verify_shards(cask) for problem in report.problems]


def test_a_read_only_cask_reads_but_takes_nothing(cask_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers take no lock. Permissions are no use here, as the tests may run as root."""

    def refuse(path: str | Path, *how: int) -> int:
        if str(path).endswith("cask.lock"):
            raise OSError(errno.EROFS, "Read-only file system")
        return system_open(path, *how)

    system_open = os.open
    monkeypatch.setattr("logitcask_schemas.cask.storage.lock.os.open", refuse)
    assert len(Cask.open(cask_path)) == 8
    with pytest.raises(CaskWriteError, match="Read-only"):
        CaskWriter.create(cask_path, teacher=make_teacher(), capture=SPEC)
