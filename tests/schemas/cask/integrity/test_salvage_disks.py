"""Repair and verify on broken disks: bad sectors, files that get shorter, folders and pipes where files should be."""

import errno
import mmap
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.zarr import ZarrCarrier
from logitcask_schemas.cask.integrity.diagnosis import rebuilt_entry
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.integrity.verify import survey, verify_shard, verify_shards
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.errors import CaskReadError
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher
from tests.support.schemas.salvage_cases import (
    DOCUMENTS,
    FIRST,
    SECOND,
    files_of,
    flip,
    make_cask,
    overwrite,
    require_sound,
)


class BadSector:
    """A disk that does not give back one sector of one file."""

    def __init__(self, path: Path, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inode, self.start, self.stop = path.stat().st_ino, start, start + 4096
        system_preadv, module = os.preadv, "logitcask_schemas.cask.integrity.verify.open_regular"

        def preadv(descriptor: int, buffers: list[Any], offset: int) -> int:
            if os.fstat(descriptor).st_ino == self.inode and self.hits(offset, sum(len(one) for one in buffers)):
                raise OSError(errno.EIO, "Input/output error")
            return system_preadv(descriptor, buffers, offset)

        def opened(path: Path) -> BinaryIO:
            if path.stat().st_ino == self.inode:
                raise OSError(errno.EIO, "Input/output error")
            return path.open("rb")

        monkeypatch.setattr("logitcask_schemas.cask.storage.files.os.preadv", preadv)
        monkeypatch.setattr(module, opened)

    def hits(self, offset: int, size: int) -> bool:
        return offset < self.stop and offset + size > self.start


def test_a_bad_sector_costs_its_documents_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = make_documents([3000, 4000, 5000, 2500], 3)
    with CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish(documents)
    shard = next((tmp_path / "shards").glob("*.arrow"))
    at = shard.read_bytes().find(documents[2].records.head_logprobs_H.tobytes())
    BadSector(shard, (at // 4096 + 1) * 4096, monkeypatch)
    (report,) = verify_shards(Cask.open(tmp_path))
    assert "Input/output error" in report.shard_problems[0]
    repaired = repair_cask(tmp_path)
    assert list(repaired.requeue) == [documents[2].id.hex()]
    assert repaired.kept_documents == 3


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_bad_sector_in_the_framing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    # Without answers, which would lie in the last sector and be lost for all documents.
    documents = [replace(one, answer_ranges_R2=None) for one in make_documents([3000, 4000, 500], 3)]
    with CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish(documents)
    shard = next((tmp_path / "shards").glob("*.arrow"))
    size = shard.stat().st_size
    BadSector(shard, 0 if where == "first" else size - size % 4096 - 4096, monkeypatch)
    (report,) = verify_shards(Cask.open(tmp_path))
    assert "Input/output error" in report.shard_problems[0]
    repaired = repair_cask(tmp_path)
    # The first sector also holds the documents' ids and checksums; the last one the last documents' last values.
    assert repaired.kept_documents == (0 if where == "first" else 1)
    assert len(repaired.requeue) == (0 if where == "first" else 2)
    assert repaired.damaged_shards == [shard.stem]


def test_a_shard_that_gets_shorter_while_it_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_cask(tmp_path / "cask", index=True)
    shard = sorted((path / "shards").glob("*.arrow"))[0]
    cask, size, system_preadv = Cask.open(path), shard.stat().st_size, os.preadv

    def preadv(descriptor: int, buffers: list[Any], offset: int) -> int:
        if os.fstat(descriptor).st_ino == shard.stat().st_ino:
            os.truncate(shard, size // 2)
        return system_preadv(descriptor, buffers, offset)

    monkeypatch.setattr("logitcask_schemas.cask.storage.files.os.preadv", preadv)
    report = verify_shard(cask, cask.entries[0])
    assert f"should have {size} bytes, it has {size // 2}" in report.shard_problems[0]


@pytest.mark.parametrize("carrier", ["arrow", "zarr", "parquet"])
@pytest.mark.parametrize("damage", ["flip", "cut", "flip and entry", "cut and entry", "entry"])
def test_a_shard_that_may_be_damaged_is_never_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carrier: str, damage: str
) -> None:
    """At a bad sector, or where the file has become shorter, the system ends a process that reads a mapping."""
    path = tmp_path / "cask"
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, carrier=carrier) as writer:
        writer.publish(FIRST)
    if "entry" in damage:
        (path / "index.json").unlink()
        overwrite(next((path / "shards").glob("*.json")), b"{")
    shard = next(file for file in (path / "shards").iterdir() if file.suffix != ".json")
    if "flip" in damage:
        flip(shard, shard.stat().st_size // 2, 0)
    elif "cut" in damage:
        overwrite(shard, shard.read_bytes()[:-9])
    system_mmap, shards = mmap.mmap, {shard.stat().st_ino}

    def mapped(descriptor: int, *arguments: Any, **options: Any) -> Any:
        assert descriptor < 0 or os.fstat(descriptor).st_ino not in shards
        return system_mmap(descriptor, *arguments, **options)

    monkeypatch.setattr(mmap, "mmap", mapped)
    monkeypatch.setattr(pa, "memory_map", lambda *_: pytest.fail("mapped"))
    listing = survey(LocalFolder(folder=path))
    assert listing.problems or [problem for report in verify_shards(listing.cask) for problem in report.problems]
    if damage == "entry":
        (name,) = listing.damaged_entries
        assert rebuilt_entry(listing.cask, name) is not None
    else:
        assert repair_cask(path).damaged_shards == [shard.name.partition(".")[0]]


@pytest.mark.parametrize("threads", range(3))
def test_a_system_without_threads_to_spare_damages_no_zarr_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """zarr-python decodes in threads; that none can be started says nothing about a shard, sound or damaged."""
    cask = make_cask(tmp_path / "cask", "zarr", index=True)
    shard = files_of(cask, FIRST[0])[0]
    flip(shard, shard.read_bytes().find(b"head_logprobs/c/0") + 40)
    started, system_start = [], threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if len(started) == threads:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        system_start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(CaskReadError, match="no thread to start"):
            repair_cask(cask)
        started.clear()
        opened = Cask.open(cask)
        with pytest.raises(OSError, match="no thread to start"):
            ZarrCarrier().open_around_damage(
                shard, opened.layout, opened.manifest.identity_digest(), memoryview(shard.read_bytes())
            )
    assert not (cask / "quarantine").exists()


def test_what_is_no_file_moves_to_the_quarantine(tmp_path: Path) -> None:
    """Folders under the names of entries, shards, index and table; also names that are taken there already."""
    cask = make_cask(tmp_path / "cask", index=True)
    shard, entry = files_of(cask, FIRST[0])
    for path in (entry, cask / "index.json", cask / "documents.bin"):
        path.unlink()
        path.mkdir()
        (path / "inside").write_text(path.name)
    (cask / "shards" / "notes").mkdir()
    (cask / "shards" / "requeue.jsonl").write_text("mine")
    (cask / "shards" / "index.json").write_text("a copy")
    os.mkfifo(cask / "shards" / "pipe")
    (cask / "shards" / "dangling").symlink_to("nothing")
    report = repair_cask(cask)
    assert require_sound(cask, report) == set(DOCUMENTS)
    assert report.quarantine is not None
    kept = {path.name for path in report.quarantine.iterdir()}
    assert kept == {
        *(entry.name, "documents.bin", "notes", "1-requeue.jsonl", "index.json", "1-index.json", "pipe", "dangling"),
        *("requeue.jsonl", "lost.jsonl"),
    }
    assert (report.quarantine / entry.name / "inside").read_text() == entry.name
    assert (report.quarantine / "1-requeue.jsonl").read_text() == "mine"
    assert not shard.is_symlink()


def test_a_shard_folder_and_a_linked_entry(tmp_path: Path) -> None:
    cask = make_cask(tmp_path / "cask", index=True)
    shard, entry = files_of(cask, FIRST[0])
    shard.unlink()
    shard.mkdir()
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to("../../elsewhere")
    content = (tmp_path / "elsewhere").read_bytes()
    report = repair_cask(cask)
    assert require_sound(cask, report) == {document.id for document in SECOND}
    assert set(report.lost) == {document.id.hex() for document in FIRST}
    assert report.quarantine is not None
    assert (report.quarantine / entry.name).read_bytes() == content, "the content, not a link that leads nowhere"
    assert (report.quarantine / shard.name).is_dir()
    assert (tmp_path / "elsewhere").read_bytes() == content
