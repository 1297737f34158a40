"""The place that entries keep for a file of hints beside a shard: known, in nobody's way, and copied by nobody."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.format.manifest import HintsFile, entry_bytes, parse_entry
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.errors import CaskCorruptionError
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher, unlisted

CONTENT = b"hints of a later version"


@pytest.fixture
def cask(tmp_path: Path) -> Path:
    """A cask with one shard that has a file beside it."""
    path = tmp_path / "cask"
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, version=2) as writer:
        entry = writer.publish(make_documents([5, 6], 1))
    assert entry is not None
    hints = HintsFile(bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    (path / "shards" / entry.hints_name).write_bytes(CONTENT)
    (path / "shards" / f"{entry.name}.json").write_bytes(entry_bytes(entry.model_copy(update={"hints": hints})))
    (path / "index.json").unlink()
    return path


def hints_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.hints.arrow"))


def test_it_is_no_stranger_and_nobody_sweeps_it(cask: Path) -> None:
    opened = Cask.open(cask)
    assert len(opened) == 2
    assert unlisted(opened) == []
    assert [problem for report in verify_shards(opened) for problem in report.problems] == []
    assert repair_cask(cask).quarantine is None
    CaskWriter.create(cask, teacher=make_teacher(), capture=SPEC).close()
    assert [path.read_bytes() for path in hints_files(cask)] == [CONTENT]
    assert json.loads((cask / "index.json").read_text())["entries"][0]["hints"]["bytes"] == len(CONTENT)


def test_without_the_member_the_file_is_a_left_over(cask: Path) -> None:
    """The control: as any shard's file whose entry was never published."""
    (path,) = (cask / "shards").glob("*.json")
    path.write_bytes(entry_bytes(parse_entry(path.read_bytes(), where=path).model_copy(update={"hints": None})))
    assert unlisted(Cask.open(cask)) != []
    CaskWriter.create(cask, teacher=make_teacher(), capture=SPEC).close()
    assert hints_files(cask) == []


@pytest.mark.parametrize("carrier", ["arrow", "zarr"])
def test_copies_leave_it_out_and_say_so(cask: Path, tmp_path: Path, carrier: str) -> None:
    merge_casks(tmp_path / "merged", [cask])
    list(export_cask(Cask.open(cask), LocalTarget(tmp_path / "exported"), carrier))
    for copy in (tmp_path / "merged", tmp_path / "exported"):
        opened = Cask.open(copy)
        assert len(opened) == 2
        assert [entry.hints for entry in opened.entries] == [None]
        assert hints_files(copy) == []


@pytest.mark.parametrize("hints", [{}, {"bytes": 0, "sha256": "0" * 64}, {"bytes": 1}, {"bytes": 1, "sha256": "x"}])
def test_what_describes_no_file_is_damage(cask: Path, hints: dict[str, Any]) -> None:
    (path,) = (cask / "shards").glob("*.json")
    entry = parse_entry(path.read_bytes(), where=path)
    unchecked = entry.model_copy(update={"hints": HintsFile.model_construct(**hints)})
    with pytest.raises(CaskCorruptionError, match="hints"):
        parse_entry(entry_bytes(unchecked), where=path)
