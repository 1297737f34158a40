"""Repair: whatever is damaged, what is left is sound, every document is kept, listed or counted, readers live on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.integrity.repair import RepairReport, repair_cask
from logitcask_schemas.cask.integrity.verify import survey, verify_shards
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.cli.integrity import repair
from logitcask_schemas.errors import CaskError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, assert_same, make_documents, make_teacher, unlisted

FIRST, SECOND = make_documents([4, 9, 17, 3], 1), make_documents([6, 30], 2)
DOCUMENTS = {document.id: document for document in [*FIRST, *SECOND]}


def create(path: Path, carrier: str = "arrow") -> CaskWriter:
    return CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, carrier=carrier)


def make_cask(path: Path, carrier: str = "arrow") -> Path:
    with create(path, carrier) as writer:
        writer.publish(FIRST)
        writer.publish(SECOND)
    return path


@pytest.fixture
def cask(tmp_path: Path) -> Path:
    return make_cask(tmp_path / "cask")


def shard_of(cask: Path, document: DocumentRecords) -> Path:
    opened = Cask.open(cask)
    number = opened.find(document.id)
    assert number is not None
    entry = opened.entries[opened.locate(number)[0]]
    return cask / "shards" / (entry.name + CARRIERS[entry.carrier].suffix)


def overwrite(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    overwrite(path, bytes(content))


def stored(path: Path) -> set[bytes]:
    """Ids of the documents of a cask that must be sound throughout."""
    cask = Cask.open(path)
    assert [problem for report in verify_shards(cask) for problem in report.problems] == []
    assert unlisted(cask) == []
    ids = [identity.tobytes() for identity in cask.document_ids()]
    assert len(ids) == len(set(ids))
    for identity in ids:
        number = cask.find(identity)
        assert number is not None
        assert_same(cask.read(number), DOCUMENTS[identity])
    listing = survey(LocalFolder(folder=path))
    assert (listing.problems, listing.unlisted_files) == ([], [])
    return set(ids)


def require_accounted(path: Path, report: RepairReport) -> None:
    """Every document is in the cask or on exactly one list; the lists on disk are those of the report."""
    ids = stored(path)
    requeued = {bytes.fromhex(identity) for identity in report.requeue}
    lost = {bytes.fromhex(identity) for identity in report.lost}
    assert not ids & requeued
    assert not ids & lost
    assert not requeued & lost
    assert len(ids) + len(requeued) + len(lost) + report.unnamed == len(DOCUMENTS)
    assert requeued | lost <= DOCUMENTS.keys()
    assert report.quarantine is not None
    lines = [json.loads(line) for line in (report.quarantine / "requeue.jsonl").read_bytes().splitlines()]
    assert lines == [document.line(identity) for identity, document in report.requeue.items()]
    for identity, document in report.requeue.items():
        assert document.token_ids_L.tolist() == DOCUMENTS[bytes.fromhex(identity)].token_ids_L.tolist()
    lines = [json.loads(line) for line in (report.quarantine / "lost.jsonl").read_bytes().splitlines()]
    assert [line["document_id"] for line in lines] == report.lost
    with create(path) as writer:
        assert {identity for identity in DOCUMENTS if writer.has(identity)} == ids
        writer.publish([*FIRST, *SECOND])
    assert stored(path) == set(DOCUMENTS)
    assert repair_cask(path).quarantine is None


def test_a_sound_cask_stays_as_it_is(cask: Path) -> None:
    before = {path: path.stat() for path in cask.rglob("*")}
    report = repair_cask(cask)
    assert (report.problems, report.quarantine) == ([], None)
    assert {path: path.stat().st_ino for path in cask.rglob("*")} == {p: s.st_ino for p, s in before.items()}


def test_only_the_damaged_document_leaves(cask: Path) -> None:
    shard = shard_of(cask, FIRST[1])
    content = shard.read_bytes()
    flip(shard, content.find(FIRST[1].records.head_logprobs_H.tobytes()))
    damaged = shard.read_bytes()
    report = repair_cask(cask)
    assert report.damaged_shards == [shard.stem]
    assert report.kept_documents == 3
    assert list(report.requeue) == [FIRST[1].id.hex()]
    assert report.quarantine is not None
    assert (report.quarantine / shard.name).read_bytes() == damaged
    require_accounted(cask, report)


def test_a_document_without_sound_tokens_is_listed_as_lost(cask: Path) -> None:
    shard = shard_of(cask, SECOND[1])
    flip(shard, shard.read_bytes().find(SECOND[1].token_ids_L.tobytes()))
    report = repair_cask(cask)
    assert report.lost == [SECOND[1].id.hex()]
    assert report.requeue == {}
    require_accounted(cask, report)


@pytest.mark.parametrize("where", ["footer", "header", "end cut off", "offsets", "padding"])
def test_damage_that_hits_no_document_loses_none(cask: Path, where: str) -> None:
    """The shard comes back whole, under its own name: framing and offsets follow from what is sound."""
    shard = shard_of(cask, FIRST[0])
    content = shard.read_bytes()
    if where == "footer":
        flip(shard, len(content) - 60, 3)
    elif where == "header":
        flip(shard, 20, 3)
    elif where == "end cut off":
        overwrite(shard, content[:-200])
    elif where == "offsets":
        cut = np.cumsum([0, *(document.records.num_positions for document in FIRST)]).astype("<i4").tobytes()
        flip(shard, content.find(cut) + 4)
    else:
        flip(shard, content.find(FIRST[0].token_ids_L.tobytes()) - 1)
    report = repair_cask(cask)
    assert report.kept_documents == 4
    assert report.new_shards == [shard.stem]
    assert shard.read_bytes() == content
    require_accounted(cask, report)


def test_a_missing_shard_is_named_by_the_table(cask: Path) -> None:
    shard_of(cask, FIRST[0]).unlink()
    report = repair_cask(cask)
    assert set(report.lost) == {document.id.hex() for document in FIRST}
    assert report.unnamed == 0
    require_accounted(cask, report)


def test_without_the_table_lost_documents_are_counted(cask: Path) -> None:
    shard_of(cask, FIRST[0]).unlink()
    (cask / "documents.bin").unlink()
    report = repair_cask(cask)
    assert (report.lost, report.unnamed) == ([], 4)
    require_accounted(cask, report)


def test_swapped_shards_get_their_names_back(cask: Path) -> None:
    shard, other = shard_of(cask, FIRST[0]), shard_of(cask, SECOND[0])
    contents = {path: path.read_bytes() for path in (shard, other)}
    shard.rename(cask / "x")
    other.rename(shard)
    (cask / "x").rename(other)
    report = repair_cask(cask)
    assert report.kept_documents == 6
    assert {path: path.read_bytes() for path in (shard, other)} == contents
    require_accounted(cask, report)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "other"])
def test_entries_are_made_anew(cask: Path, damage: str, index: bool) -> None:
    entry = shard_of(cask, FIRST[0]).with_suffix(".json")
    content = entry.read_bytes()
    if damage == "flip":
        flip(entry, 100)
    elif damage == "cut":
        overwrite(entry, content[:50])
    elif damage == "other":
        overwrite(entry, shard_of(cask, SECOND[0]).with_suffix(".json").read_bytes())
    else:
        entry.unlink()
    if not index:
        (cask / "index.json").unlink()
        if damage == "missing":
            return  # Such a shard was never published, or is as if it were not.
    report = repair_cask(cask)
    assert report.problems
    assert entry.read_bytes() == content
    assert (report.requeue, report.lost, report.unnamed) == ({}, [], 0)
    require_accounted(cask, report)


@pytest.mark.parametrize("name", ["index.json", "documents.bin"])
def test_derived_files_are_made_anew(cask: Path, name: str) -> None:
    content = (cask / name).read_bytes()
    flip(cask / name, len(content) // 2)
    report = repair_cask(cask)
    assert (cask / name).read_bytes() == content
    assert report.quarantine is not None
    assert (report.quarantine / name).exists()
    require_accounted(cask, report)


def test_a_table_that_somebody_removed_is_made_anew(cask: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (cask / "documents.bin").read_bytes()
    (cask / "documents.bin").unlink()
    repair(str(cask))
    assert capsys.readouterr().out.startswith("note: the table of documents was missing or out of date")
    assert (cask / "documents.bin").read_bytes() == content
    repair(str(cask))
    assert capsys.readouterr().out == f"{cask}: nothing to repair\n"


def test_the_command_that_captures_again_is_printed(cask: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = shard_of(cask, FIRST[1])
    flip(shard, shard.read_bytes().find(FIRST[1].records.head_logprobs_H.tobytes()))
    with pytest.raises(typer.Exit) as ended:
        repair(str(cask))
    assert ended.value.exit_code == 3
    (folder,) = (cask / "quarantine").iterdir()
    line = (
        f"1 document to capture again: logitcask submit {folder / 'requeue.jsonl'} --cask cask --overflow skip --wait "
        "--tau 0.05"
    )
    assert line in capsys.readouterr().out.splitlines()


def test_foreign_shards_and_files_go_to_quarantine(cask: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    CaskWriter.create(foreign, teacher=make_teacher(), capture=CaptureSpec(tau=0.02)).publish(FIRST)
    names = {file.name for file in (foreign / "shards").iterdir()} | {"notes.txt"}
    for file in (foreign / "shards").iterdir():
        shutil.copy(file, cask / "shards")
    (cask / "shards" / "notes.txt").write_text("mine")
    with pytest.raises(CaskError, match="foreign"):
        Cask.open(cask)
    report = repair_cask(cask)
    assert report.quarantine is not None
    assert names <= {file.name for file in report.quarantine.iterdir()}
    require_accounted(cask, report)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), carrier=st.sampled_from(sorted(CARRIERS)), table=st.booleans())
def test_any_damage_leaves_a_sound_cask_that_accounts_for_everything(tmp_path_factory, data, carrier, table) -> None:
    cask = make_cask(tmp_path_factory.mktemp("repair") / "cask", carrier)
    if not table:
        (cask / "documents.bin").unlink()
    files = sorted(path for path in cask.rglob("*") if path.is_file() and path.name not in ("cask.json", "cask.lock"))
    originals = {path: path.read_bytes() for path in files}
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(files))
        content = path.read_bytes() if path.exists() else b""
        kind = data.draw(st.sampled_from(["flip", "cut", "remove", "replace"]))
        if kind == "remove" or not content:
            path.unlink(missing_ok=True)
        elif kind == "flip":
            flip(path, data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7)))
        elif kind == "cut":
            overwrite(path, content[: data.draw(st.integers(0, len(content) - 1))])
        else:
            overwrite(path, originals[data.draw(st.sampled_from(files))])
    report = repair_cask(cask)
    ids = stored(cask)
    listed = {bytes.fromhex(identity) for identity in report.requeue} | {*map(bytes.fromhex, report.lost)}
    assert not listed & ids
    assert listed <= DOCUMENTS.keys()
    with create(cask) as writer:
        writer.publish([*FIRST, *SECOND])
    assert stored(cask) == set(DOCUMENTS)


READER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from logitcask_schemas.cask import Cask
cask = Cask.open(Path(sys.argv[1]))
held = [cask.read(number) for number in range(len(cask))]
def digest():
    return [bytes(one.records.head_logprobs_H.tobytes() + one.token_ids_L.tobytes()) for one in held]
before = digest()
print("mapped", flush=True)
for _ in sys.stdin:
    again = [cask.read(number) for number in range(len(cask))]
    print(digest() == before and all(a.id == b.id for a, b in zip(again, held)), flush=True)
"""


def test_a_live_reader_survives_repair_and_compaction(cask: Path) -> None:
    """A real process with everything mapped: no SIGBUS, and what it read stays what it was."""
    folders = [folder for folder in sys.path if folder]
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(cask), *folders], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "mapped\n"

        def require_alive() -> None:
            print(file=reader.stdin, flush=True)
            assert reader.stdout.readline() == "True\n"

        shard = shard_of(cask, FIRST[1])
        content = shard.read_bytes()
        flip(shard, content.find(FIRST[1].records.head_logprobs_H.tobytes()))
        require_alive()
        report = repair_cask(cask)
        assert report.requeue
        require_alive()
        with create(cask) as writer:
            writer.publish(FIRST)
        require_alive()
        overwrite(shard_of(cask, SECOND[0]), b"")
        repair_cask(cask)
        require_alive()
        reader.stdin.close()
        assert reader.wait() == 0
