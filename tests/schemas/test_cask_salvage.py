"""Repair where least is left: entry and shard damaged together, chunks that do not decode, broken disks.

Whatever is proved document by document is kept, whatever has its tokens is listed for capture, the rest is named or at
least counted.
"""

import errno
import io
import mmap
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pytest
from cask_samples import SPEC, VOCABS, assert_same, make_documents, make_teacher, specs
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.arrow_carrier import ArrowCarrier
from logitcask_schemas.cask.arrow_frame import arrow_frame
from logitcask_schemas.cask.carriers import CARRIERS, shard_path
from logitcask_schemas.cask.columns import assemble
from logitcask_schemas.cask.layout import LEVELS, RecordLayout
from logitcask_schemas.cask.rebuilding import guessed_entries, rebuilt_entry
from logitcask_schemas.cask.repair import RepairReport, repair_cask
from logitcask_schemas.cask.shard_writing import write_shard
from logitcask_schemas.cask.survey import survey
from logitcask_schemas.cask.verify import strangers, verify_shard, verify_shards
from logitcask_schemas.manifest import CaskManifest, ShardEntry
from logitcask_schemas.records import DocumentRecords

FIRST, SECOND = make_documents([4, 9, 17, 3], 1), make_documents([6, 30], 2)
DOCUMENTS = {document.id: document for document in [*FIRST, *SECOND]}


def make_cask(path: Path, carrier: str = "arrow", *, index: bool = False, table: bool = True) -> Path:
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, carrier=carrier) as writer:
        writer.publish(FIRST)
        writer.publish(SECOND)
    if not index:
        (path / "index.json").unlink()
    if not table:
        (path / "documents.bin").unlink()
    return path


def files_of(cask: Path, document: DocumentRecords) -> tuple[Path, Path]:
    """The shard's file and its entry's."""
    opened = Cask.open(cask)
    number = opened.find(document.id)
    assert number is not None
    shard = shard_path(cask, opened.entries[opened.locate(number)[0]])
    return shard, shard.with_name(shard.name.partition(".")[0] + ".json")


def overwrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    overwrite(path, bytes(content))


def change_number(entry: Path, field: str) -> None:
    """Another last digit."""
    content = entry.read_bytes()
    found = re.search(rb'"%s":\d*(\d)' % field.encode(), content)
    assert found is not None
    flip(entry, found.start(1))


def require_sound(cask: Path, report: RepairReport) -> set[bytes]:
    """Ids of what is left, which is right; nothing is listed that is there, and nothing twice."""
    opened = Cask.open(cask)
    assert [problem for one in verify_shards(opened) for problem in one.problems] == []
    assert strangers(opened) == []
    assert survey(cask).problems == []
    ids = [identity.tobytes() for identity in opened.document_ids()]
    assert len(ids) == len(set(ids))
    for number, identity in enumerate(ids):
        assert_same(opened.read(number), DOCUMENTS[identity])
    requeued = [bytes.fromhex(identity) for identity, _ in report.requeue]
    lost = [bytes.fromhex(identity) for identity in report.lost]
    assert len({*ids, *requeued, *lost}) == len(ids) + len(requeued) + len(lost)
    assert {*requeued, *lost} <= DOCUMENTS.keys()
    for identity, tokens in report.requeue:
        assert tokens == DOCUMENTS[bytes.fromhex(identity)].token_ids_L.tolist()
    assert repair_cask(cask).quarantine is None
    return set(ids)


@settings(max_examples=30, deadline=None)
@given(
    vocab_size=st.sampled_from(VOCABS),
    spec=specs(),
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=9),
    tails=st.booleans(),
)
def test_a_frame_is_where_arrow_puts_things(vocab_size: int, spec, lengths: list[int], tails: bool) -> None:
    manifest = CaskManifest(teacher=make_teacher(vocab_size), capture=spec, created_by="", created_at="")
    layout, identity = RecordLayout.of(manifest), manifest.identity_digest()
    documents = make_documents(lengths, 5, vocab_size=vocab_size, spec=spec, tails=tails)
    columns = assemble(documents, [document.id for document in documents], layout)
    sink = io.BytesIO()
    write_shard(ArrowCarrier(), columns, layout, identity, sink)
    content = sink.getvalue()
    counts = {level: int(columns.offsets[level][-1]) for level in LEVELS}
    frame = arrow_frame(len(documents), counts, layout, identity)
    assert frame.size == len(content)
    assert content[frame.document_ids :].startswith(columns.document_ids.tobytes())
    assert content[frame.checksums :].startswith(columns.checksums.tobytes())
    for column in layout.columns:
        offsets, values = frame.columns[column.name]
        assert content[offsets:].startswith(columns.offsets[column.level].astype("<i4").tobytes())
        assert content[values:].startswith(np.ascontiguousarray(columns.arrays[column.name]).tobytes())


@pytest.mark.parametrize("table", [True, False], ids=["table", "no table"])
@pytest.mark.parametrize("entry_damage", ["sha256", "documents", "tokens", "positions", "head_entries", "cut", "gone"])
@pytest.mark.parametrize("shard_damage", ["record", "footer", "header"])
def test_entry_and_arrow_shard_damaged_together(
    tmp_path: Path, shard_damage: str, entry_damage: str, table: bool
) -> None:
    cask = make_cask(tmp_path / "cask", table=table)
    shard, entry = files_of(cask, FIRST[0])
    content = shard.read_bytes()
    if shard_damage == "record":
        flip(shard, content.find(FIRST[1].records.head_logprobs_H.tobytes()))
    else:
        flip(shard, len(content) - 60 if shard_damage == "footer" else 20, 3)
    if entry_damage in ("cut", "gone"):
        overwrite(entry, entry.read_bytes()[: 40 if entry_damage == "cut" else 0])
    elif entry_damage == "sha256":
        flip(entry, entry.read_bytes().find(b'"sha256":"') + 12)
    else:
        change_number(entry, entry_damage)
    report = repair_cask(cask)
    left = require_sound(cask, report)
    if shard_damage == "record":
        assert left == DOCUMENTS.keys() - {FIRST[1].id}
        assert [identity for identity, _ in report.requeue] == [FIRST[1].id.hex()]
    else:
        assert left == DOCUMENTS.keys()
        assert shard.read_bytes() == content
    assert (report.lost, report.unnamed) == ([], 0)


@pytest.mark.parametrize("table", [True, False], ids=["table", "no table"])
def test_a_cut_shard_with_a_damaged_entry_still_gives_its_tokens(tmp_path: Path, table: bool) -> None:
    """Its last column is gone, so no record is whole; the entry's numbers say where the tokens are."""
    cask = make_cask(tmp_path / "cask", table=table)
    shard, entry = files_of(cask, FIRST[0])
    content = shard.read_bytes()
    overwrite(shard, content[: content.find(FIRST[0].records.entropy_P.tobytes())])
    change_number(entry, "positions")
    report = repair_cask(cask)
    assert require_sound(cask, report) == {document.id for document in SECOND}
    assert {identity for identity, _ in report.requeue} == {document.id.hex() for document in FIRST}
    assert report.kept_documents == 0


@pytest.mark.parametrize("table", [True, False], ids=["table", "no table"])
@pytest.mark.parametrize("entry_damage", ["number", "all"])
@pytest.mark.parametrize("shard_damage", ["zeros", "missing", "empty"])
def test_nothing_left_is_named_or_counted(tmp_path: Path, shard_damage: str, entry_damage: str, table: bool) -> None:
    cask = make_cask(tmp_path / "cask", table=table)
    shard, entry = files_of(cask, FIRST[0])
    if shard_damage == "missing":
        shard.unlink()
    else:
        overwrite(shard, bytes(shard.stat().st_size) if shard_damage == "zeros" else b"")
    if entry_damage == "number":
        change_number(entry, "tokens")
    else:
        overwrite(entry, bytes(200))
    report = repair_cask(cask)
    assert require_sound(cask, report) == {document.id for document in SECOND}
    assert report.damaged_shards == [entry.stem]
    if table:
        assert set(report.lost) == {document.id.hex() for document in FIRST}
        assert report.unnamed == 0
    else:
        assert report.lost == []
        assert report.unnamed == (len(FIRST) if entry_damage == "number" else 1)
        told = f"shard {entry.stem}: neither its file nor its entry tell what it held"
        assert (told in report.problems) == (entry_damage == "all")


def test_a_damaged_index_still_says_what_a_shard_held(tmp_path: Path) -> None:
    cask = make_cask(tmp_path / "cask", index=True, table=False)
    shard, entry = files_of(cask, FIRST[0])
    content = shard.read_bytes()
    flip(shard, 20, 3)
    overwrite(shard, shard.read_bytes()[:-100])
    overwrite(entry, b"")
    flip(cask / "index.json", 20)
    report = repair_cask(cask)
    assert require_sound(cask, report) == set(DOCUMENTS)
    assert shard.read_bytes() == content


@pytest.mark.parametrize("carrier", ["zarr", "parquet"])
def test_other_carriers_with_a_damaged_entry(tmp_path: Path, carrier: str) -> None:
    """They open or they do not; what opens is proved without the entry."""
    cask = make_cask(tmp_path / "cask", carrier)
    shard, entry = files_of(cask, FIRST[0])
    change_number(entry, "documents")
    content = shard.read_bytes()
    report = repair_cask(cask)
    assert require_sound(cask, report) == set(DOCUMENTS)
    assert shard.read_bytes() == content
    change_number(entry, "documents")
    overwrite(shard, content[:-30])
    report = repair_cask(cask)
    assert require_sound(cask, report) == {document.id for document in SECOND}
    assert set(report.lost) == {document.id.hex() for document in FIRST}


def test_a_zarr_chunk_that_does_not_decode_costs_its_documents(tmp_path: Path) -> None:
    """Several chunks per column: the documents of the others stay, those of the damaged one are captured again."""
    documents = make_documents([3000, 4000, 5000, 2500], 3)
    with CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC, carrier="zarr") as writer:
        writer.publish(documents)
    shard = next((tmp_path / "shards").glob("*.zip"))
    content = shard.read_bytes()
    flip(shard, content.find(b"head_logprobs/c") + 5000)
    report = repair_cask(tmp_path)
    requeued = {identity for identity, _ in report.requeue}
    assert 0 < len(requeued) < 4
    assert report.kept_documents == 4 - len(requeued)
    cask = Cask.open(tmp_path)
    assert {*requeued, *(identity.tobytes().hex() for identity in cask.document_ids())} == {
        d.id.hex() for d in documents
    }
    assert repair_cask(tmp_path).quarantine is None


@settings(max_examples=60, deadline=None)
@given(data=st.data(), carrier=st.sampled_from(sorted(CARRIERS)), table=st.booleans(), index=st.booleans())
def test_any_damage_to_an_entry_and_its_shard(tmp_path_factory, data, carrier: str, table: bool, index: bool) -> None:
    cask = make_cask(tmp_path_factory.mktemp("both") / "cask", carrier, index=index, table=table)
    damaged = [*files_of(cask, FIRST[0]), *([cask / "index.json"] if index else [])]
    for path in damaged:
        content = path.read_bytes()
        kind = data.draw(st.sampled_from(["flip", "cut", "zeros", "lengthen"]))
        at = data.draw(st.integers(0, len(content) - 1))
        if kind == "flip":
            flip(path, at, data.draw(st.integers(0, 7)))
        elif kind == "cut":
            overwrite(path, content[:at])
        elif kind == "zeros":
            stop = data.draw(st.integers(at + 1, len(content)))
            overwrite(path, content[:at] + bytes(stop - at) + content[stop:])
        else:
            overwrite(path, content + data.draw(st.binary(min_size=1, max_size=99)))
    report = repair_cask(cask)
    left = require_sound(cask, report)
    assert {document.id for document in SECOND} <= left
    named = len(left) + len(report.requeue) + len(report.lost)
    assert named == len(DOCUMENTS) if table else (named < len(DOCUMENTS)) == (report.unnamed > 0)


class BadSector:
    """A disk that does not give back one sector of one file."""

    def __init__(self, path: Path, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inode, self.start, self.stop = path.stat().st_ino, start, start + 4096
        system_preadv, module = os.preadv, "logitcask_schemas.cask.verify.open_regular"

        def preadv(descriptor: int, buffers: list[Any], offset: int) -> int:
            if os.fstat(descriptor).st_ino == self.inode and self.hits(offset, sum(len(one) for one in buffers)):
                raise OSError(errno.EIO, "Input/output error")
            return system_preadv(descriptor, buffers, offset)

        def opened(path: Path) -> BinaryIO:
            if path.stat().st_ino == self.inode:
                raise OSError(errno.EIO, "Input/output error")
            return path.open("rb")

        monkeypatch.setattr("logitcask_schemas.cask.regular_files.os.preadv", preadv)
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
    assert [identity for identity, _ in repaired.requeue] == [documents[2].id.hex()]
    assert repaired.kept_documents == 3


@pytest.mark.parametrize("entry", ["sound", "damaged"])
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_bad_sector_in_the_framing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, entry: str) -> None:
    """Of a shard whose entry is lost too, what lies before the columns tells what it held."""
    documents = make_documents([3000, 4000, 500], 3)
    with CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish(documents)
    shard = next((tmp_path / "shards").glob("*.arrow"))
    if entry == "damaged":
        overwrite(shard.with_suffix(".json"), b"{")
        (tmp_path / "index.json").unlink()
    size = shard.stat().st_size
    BadSector(shard, 0 if where == "first" else size - size % 4096 - 4096, monkeypatch)
    taken = survey(tmp_path)
    if entry == "damaged":
        found = guessed_entries(taken.cask, shard.stem, None)
        assert [(one.documents, one.tokens) for one in found] == ([(3, 7500)] if where == "last" else [])
    else:
        (report,) = verify_shards(taken.cask)
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

    monkeypatch.setattr("logitcask_schemas.cask.regular_files.os.preadv", preadv)
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
    taken = survey(path)
    assert taken.problems or [problem for one in verify_shards(taken.cask) for problem in one.problems]
    if damage == "entry":
        (name,) = taken.damaged_entries
        assert rebuilt_entry(taken.cask, name) is not None
    else:
        assert repair_cask(path).damaged_shards == [shard.name.partition(".")[0]]


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


def test_entries_stay_comparable() -> None:
    """Guesses are told apart by their numbers."""
    fields = {"name": "a" * 32, "bytes": 1, "sha256": "b" * 64, "identity": "c" * 64, "documents": 1}
    one = ShardEntry(**fields, tokens=2, positions=1, head_entries=1, tail_entries=0)  # type: ignore[arg-type]
    assert len({one, one.model_copy(), one.model_copy(update={"bytes": 2})}) == 2
