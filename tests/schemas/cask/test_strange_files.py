"""Pipes, folders, devices, links and files of holes in the place of a cask's files: errors of ours or right records.

Never a hang (a pipe without a writer), a foreign exception, memory for what is not there, or a wrong record.
"""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.integrity.verify import survey, verify_shards
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.cask.storage.files import open_regular
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.errors import CaskError, CaskReadError
from tests.support.schemas.cask_samples import SPEC, assert_same, make_documents, make_teacher

pytestmark = pytest.mark.timeout(60)
DOCUMENTS = {document.id: document for document in [*make_documents([4, 9], 1), *make_documents([6, 30], 2)]}
PLACES = ("cask.json", "index.json", "documents.bin", "entry", *CARRIERS)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    casks = {}
    for carrier in CARRIERS:
        casks[carrier] = tmp_path_factory.mktemp("sound") / "cask"
        with CaskWriter.create(casks[carrier], teacher=make_teacher(), capture=SPEC, carrier=carrier) as writer:
            writer.publish(list(DOCUMENTS.values())[:2])
            writer.publish(list(DOCUMENTS.values())[2:])
    return casks


def copy_of(sound: dict[str, Path], place: str, folder: Path) -> tuple[Path, Path]:
    """A cask to maltreat and the file of it to replace; for an entry, without the index that would stand in for it."""
    carrier = place if place in CARRIERS else "arrow"
    cask = Path(shutil.copytree(sound[carrier], folder / "cask"))
    name = Cask.open(cask).entries[0].name
    if place == "entry":
        (cask / "index.json").unlink()
    files = {"entry": f"shards/{name}.json", carrier: f"shards/{name}{CARRIERS[carrier].suffix}"}
    return cask, cask / files.get(place, place)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "empty": Path.touch,
    "holes": sparse,
    "device": link_to("/dev/zero"),
    "dangling": link_to("nothing"),
    "loop": link_to_itself,
    "link to a folder": link_to("/"),
    "other file": link_to("/proc/self/status"),
}


def attempt(action: Callable[[], object]) -> bool:
    """Whether it works; only errors of ours may stop it."""
    try:
        action()
    except CaskError:
        return False
    return True


def read_everything(path: Path) -> None:
    cask = Cask.open(path)
    attempt(cask.document_lengths)
    attempt(cask.document_ids)
    attempt(lambda: cask.find(b"\0" * 32))
    for number in range(len(cask)):
        attempt(partial(open_shard_of, cask, number))
        attempt(partial(require_right, cask, number))


def open_shard_of(cask: Cask, number: int) -> None:
    cask.shard(cask.locate(number)[0])


def require_right(cask: Cask, number: int) -> None:
    document = cask.read(number)
    assert_same(document, DOCUMENTS[document.id])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_readers_writers_and_exports(sound: dict[str, Path], place: str, kind: str, tmp_path: Path) -> None:
    cask, path = copy_of(sound, place, tmp_path)
    path.unlink()
    KINDS[kind](path)
    attempt(lambda: read_everything(cask))
    attempt(lambda: CaskWriter.create(cask, teacher=make_teacher(), capture=SPEC).publish(make_documents([3], 9)))
    attempt(lambda: list(export_cask(Cask.open(cask), LocalTarget(tmp_path / "copy"), "zarr")))
    if attempt(lambda: survey(LocalFolder(folder=cask))):
        listing = survey(LocalFolder(folder=cask))
        problems = [
            *listing.problems,
            *(problem for report in verify_shards(listing.cask) for problem in report.problems),
        ]
        assert (
            problems or (place == "index.json" and kind == "dangling") or (place, kind) == ("documents.bin", "dangling")
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES[1:])
def test_repair(sound: dict[str, Path], place: str, kind: str, tmp_path: Path) -> None:
    """Derived files and entries are made anew; of a shard that is gone the documents are listed; all else stays."""
    cask, path = copy_of(sound, place, tmp_path)
    path.unlink()
    KINDS[kind](path)
    report = repair_cask(cask)
    opened = Cask.open(cask)
    left = {opened.read(number).id for number in range(len(opened))}
    read_everything(cask)
    assert [problem for report in verify_shards(opened) for problem in report.problems] == []
    assert left | {bytes.fromhex(identity) for identity in report.lost} == set(DOCUMENTS)
    assert len(report.lost) == (2 if place in CARRIERS else 0)
    assert repair_cask(cask).quarantine is None
    CaskWriter.create(cask, teacher=make_teacher(), capture=SPEC).publish(list(DOCUMENTS.values()))
    assert len(Cask.open(cask)) == len(DOCUMENTS)


@pytest.mark.parametrize("place", ["entry", *CARRIERS])
def test_a_link_to_the_right_file_is_that_file(sound: dict[str, Path], place: str, tmp_path: Path) -> None:
    """People keep large files on other disks."""
    cask, path = copy_of(sound, place, tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    opened = Cask.open(cask)
    assert {opened.read(number).id for number in range(len(opened))} == set(DOCUMENTS)
    read_everything(cask)
    assert [problem for report in verify_shards(opened) for problem in report.problems] == []
    assert repair_cask(cask).quarantine is None


def test_too_many_open_files_say_nothing_of_the_cask(cask_path: Path) -> None:
    """A repair must not take this for damage."""
    opened = Cask.open(cask_path)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files_open = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
    descriptors = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(files_open) + 1, hard[1]))
        with suppress(OSError):
            while True:
                descriptors.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(CaskReadError, match="Too many open files") as refused:
            open_regular(cask_path / "cask.json")
        assert refused.value.errno == errno.EMFILE
        with pytest.raises(CaskReadError, match="Too many open files"):
            opened.read(0)
        with pytest.raises(CaskReadError, match="Too many open files"):
            list(verify_shards(opened))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, hard)
    assert repair_cask(cask_path).quarantine is None


LIMITED = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import CaskError
import pyarrow.parquet
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), resource.RLIM_INFINITY))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        cask = Cask.open(path)
        lengths = cask.document_lengths().sum()
        print(path.name, [cask.read(number).id.hex() for number in range(len(cask))])
    except CaskError as error:
        print(path.name, type(error).__name__)
"""


def test_files_of_holes_take_no_memory(sound: dict[str, Path], tmp_path: Path) -> None:
    """Four terabytes each, in a process that may take half a gigabyte."""
    for place in PLACES:
        (tmp_path / "casks" / place).mkdir(parents=True)
        _, path = copy_of(sound, place, tmp_path / "casks" / place)
        sparse(path)
        (tmp_path / "casks" / place / "cask").rename(tmp_path / "casks" / f"{place} cask")
        (tmp_path / "casks" / place).rmdir()
    folders = [folder for folder in sys.path if folder]
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "casks"), *folders], capture_output=True, text=True, check=True
    )
    outcomes = dict(line.split(" cask ") for line in run.stdout.splitlines())
    assert outcomes == dict.fromkeys(PLACES, "CaskCorruptionError")
