"""Proving, mending, copying and dropping hints: records are never lost over them, and no copy forgets them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.dropping import drop_hints
from logitcask_schemas.cask.integrity.remote_verify import survey_url
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.cask.transfer.export import copy_as_is, export_cask
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.cask.transfer.packing import export_packed
from logitcask_schemas.cask.transfer.split import SplitRule, split_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget, RemoteTarget
from logitcask_schemas.cli.main import main
from logitcask_schemas.errors import CaskError, HintsDroppedError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows
from tests.support.schemas.cask_samples import make_teacher, unlisted
from tests.support.schemas.crash_model import Operation, RecordingFiles, crash
from tests.support.schemas.hint_samples import assert_same_rows, cask_with_hints, documents_with_hints

SPEC = HintSpec(layers=(1, 3), codec="i8")
SHARDS = [[5, 9, 12], [4, 7]]


@pytest.fixture
def cask(tmp_path: Path) -> Path:
    return cask_with_hints(tmp_path / "cask", SPEC, SHARDS)


def hints_of(path: Path) -> dict[bytes, HintRows]:
    opened = Cask.open(path)
    return {opened.read(number).id: opened.hints(number) for number in range(len(opened))}


def problems_of(path: Path) -> list[str]:
    return [problem for report in verify_shards(Cask.open(path)) for problem in report.problems]


def assert_same_hints(path: Path, expected: dict[bytes, HintRows]) -> None:
    actual = hints_of(path)
    assert actual.keys() == expected.keys()
    for identity, rows in expected.items():
        assert_same_rows(actual[identity], rows)
    assert problems_of(path) == []
    assert unlisted(Cask.open(path)) == []


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def swap(file: Path) -> None:
    other = next(path for path in file.parent.glob("*.hints.arrow") if path != file)
    content = other.read_bytes()
    shutil.copy(file, other)
    file.write_bytes(content)


DAMAGES = [Path.unlink, truncate, flip, swap]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_a_repair_keeps_every_record(cask: Path, damage: Callable[[Path], None]) -> None:
    ids = {identity.tobytes() for identity in Cask.open(cask).document_ids()}
    first = sorted(cask.rglob("*.hints.arrow"))[0]
    damage(first)
    found = problems_of(cask)
    assert found
    assert all(".hints.arrow" in problem and "cask repair" in problem for problem in found)
    report = repair_cask(cask)
    assert (report.requeue, report.lost, report.damaged_shards) == ({}, [], [])
    assert len(report.without_hints) == (2 if damage is swap else 1)
    assert problems_of(cask) == []
    opened = Cask.open(cask)
    assert {identity.tobytes() for identity in opened.document_ids()} == ids
    assert not opened.has_hints
    assert unlisted(opened) == []
    assert repair_cask(cask).quarantine is None
    with pytest.raises(HintsDroppedError, match="drop-hints"):
        opened.hints(next(number for number, entry in enumerate(opened.entries) if entry.hints is None) * 3)


def test_a_sound_cask_is_left_alone(cask: Path) -> None:
    """The control of the test above."""
    before = hints_of(cask)
    assert problems_of(cask) == []
    assert repair_cask(cask).quarantine is None
    assert_same_hints(cask, before)


def test_sound_documents_of_a_damaged_shard_keep_their_hints(cask: Path) -> None:
    before = hints_of(cask)
    opened = Cask.open(cask)
    shard = opened.shard(0).path
    content = bytearray(shard.read_bytes())
    ids = opened.shard(0).columns.arrays["head_ids"]
    content[content.index(ids[0 : len(ids)].tobytes())] ^= 4  # of the first document
    shard.write_bytes(content)
    report = repair_cask(cask)
    gone = {*report.requeue, *report.lost}
    assert gone
    left = {identity: rows for identity, rows in before.items() if identity.hex() not in gone}
    assert len(left) == len(before) - 1
    assert_same_hints(cask, left)
    assert Cask.open(cask).has_hints


def test_an_entry_that_is_lost_is_rebuilt_with_its_hints(cask: Path) -> None:
    before = hints_of(cask)
    (cask / "index.json").unlink()
    next((cask / "shards").glob("*.json")).write_bytes(b"{}")
    report = repair_cask(cask)
    assert report.problems
    assert_same_hints(cask, before)


def test_an_entry_whose_cask_has_no_hints_is_told(tmp_path: Path, cask: Path) -> None:
    opened = Cask.open(cask)
    manifest = opened.manifest.model_copy(update={"capture": CaptureSpec(tau=0.05)})
    report = next(iter(verify_shards(Cask(opened.location, manifest, opened.entries))))
    assert any("capture spec has none" in problem for problem in report.problems) or report.shard_problems


@pytest.mark.parametrize("carrier", ["arrow", "zarr", "parquet", None])
def test_copies_bring_the_hints_along(cask: Path, tmp_path: Path, carrier: str | None) -> None:
    before = hints_of(cask)
    list(export_cask(Cask.open(cask), LocalTarget(tmp_path / "copy"), carrier))
    assert_same_hints(tmp_path / "copy", before)
    files = [sorted(folder.rglob("*.hints.arrow")) for folder in (cask, tmp_path / "copy")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_packed_copies_bring_the_hints_along(cask: Path, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    before = hints_of(cask)
    list(export_packed(Cask.open(cask), LocalTarget(tmp_path / "packed")))
    assert_same_hints(tmp_path / "packed", before)


def test_stores_take_and_give_them(cask: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url, before = f"memory://{request.node.name}", hints_of(cask)
    list(export_cask(Cask.open(cask), RemoteTarget(SharedStore(url)), None))
    remote = Cask.open(url, cache=tmp_path / "cache")
    for number in range(len(remote)):
        assert_same_rows(remote.hints(number), before[remote.read(number).id])
    with survey_url(url) as listed:
        reports = list(verify_shards(listed.surveyed.cask, prove=listed.prove))
    assert [problem for report in reports for problem in report.problems] == []
    list(copy_as_is(url, tmp_path / "copy"))
    assert_same_hints(tmp_path / "copy", before)
    store, name = RemoteStore(url), next(iter(remote.entries)).hints_name
    store.write(f"shards/{name}", b"short")
    with survey_url(url) as listed:
        problems = [p for r in verify_shards(listed.surveyed.cask, prove=listed.prove) for p in r.problems]
    assert len(problems) == 1
    assert f"{url}/shards/{name}" in problems[0]
    assert "it has 5" in problems[0]


@pytest.mark.parametrize("link", [True, False])
def test_merges_bring_them_along_whole_and_in_part(cask: Path, tmp_path: Path, link: bool) -> None:
    before = hints_of(cask)
    merge_casks(tmp_path / "merged", [cask], link=link)
    assert_same_hints(tmp_path / "merged", before)
    some = tmp_path / "some"
    capture = CaptureSpec(tau=0.05, hints=SPEC)
    with CaskWriter.create(some, teacher=make_teacher(), capture=capture, version=2) as writer:
        writer.publish(documents_with_hints(SHARDS[0], 0, SPEC)[:1])
    report = merge_casks(some, [cask], link=link)
    assert report.rewritten == 1
    assert_same_hints(some, before)


def test_splits_divide_them(cask: Path, tmp_path: Path) -> None:
    before = hints_of(cask)
    split_cask(cask, (tmp_path / "a", tmp_path / "b"), SplitRule(fraction=0.5, seed=1))
    sides = [hints_of(tmp_path / side) for side in "ab"]
    assert all(sides)
    joined = sides[0] | sides[1]
    for identity, rows in before.items():
        assert_same_rows(joined[identity], rows)


def test_a_cask_with_some_hints_only_is_not_split(cask: Path, tmp_path: Path) -> None:
    sorted(cask.rglob("*.hints.arrow"))[0].unlink()
    repair_cask(cask)
    with pytest.raises(CaskError, match=r"1 of 2 shards have hints.*drop-hints"):
        split_cask(cask, (tmp_path / "a", tmp_path / "b"), SplitRule(fraction=0.5, seed=1))


def test_damaged_hints_are_not_copied(cask: Path, tmp_path: Path) -> None:
    flip(sorted(cask.rglob("*.hints.arrow"))[0])
    with pytest.raises(CaskError, match="SHA-256"):
        list(export_cask(Cask.open(cask), LocalTarget(tmp_path / "copy"), None))
    with pytest.raises(CaskError, match="SHA-256"):
        merge_casks(tmp_path / "merged", [cask])
    assert list(tmp_path.glob("copy/cask.json")) == []


def test_dropping_frees_the_files_and_leaves_the_records(cask: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = {path: path.read_bytes() for path in (cask / "shards").glob("*.arrow") if ".hints" not in path.name}
    size = sum(path.stat().st_size for path in cask.rglob("*.hints.arrow"))
    mapped = Cask.open(cask)
    rows = mapped.hints(0)
    main_without_exit(["cask", "drop-hints", str(cask), "--json"])
    assert json.loads(capsys.readouterr().out) == {"shards": 2, "bytes": size}
    assert rows.decode().shape[1:] == (2, 24)  # whoever has them mapped goes on
    assert list(cask.rglob("*.hints.arrow")) == []
    assert {path: path.read_bytes() for path in (cask / "shards").glob("*.arrow")} == records
    opened = Cask.open(cask)
    assert not opened.has_hints
    assert problems_of(cask) == []
    with pytest.raises(HintsDroppedError, match="capture into a new one"):
        opened.hints(0)
    assert drop_hints(cask).bytes == 0
    main_without_exit(["cask", "ls", str(cask)])
    assert "dropped" in capsys.readouterr().out


def test_there_is_nothing_to_drop_where_none_were_kept(tmp_path: Path) -> None:
    CaskWriter.create(tmp_path / "cask", teacher=make_teacher(), capture=CaptureSpec()).close()
    with pytest.raises(HintsDroppedError, match="nothing to drop"):
        drop_hints(tmp_path / "cask")


def test_commands_tell_what_is_kept(cask: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["show", str(cask)], ["stats", str(cask)], ["ls", str(cask)]):
        main_without_exit(["cask", *command])
        printed = " ".join(capsys.readouterr().out.split())
        assert ("hidden of layers 1, 3" in printed) != (command[0] == "ls"), printed
        assert ("bytes of hints" in printed) == (command[0] == "ls"), printed
    main_without_exit(["cask", "stats", str(cask), "--json"])
    hints = json.loads(capsys.readouterr().out)["hints"]
    assert (hints["layers"], hints["codec"], hints["shards"]) == ([1, 3], "i8", 2)


def main_without_exit(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "cask.lock"}


def states(path: Path, operations: list[Operation], before: dict[Path, bytes]) -> "list[tuple[int, dict[Path, bytes]]]":
    """What may be left after each number of operations, if the disk had everything or only what was synced."""
    left = []
    for length in range(len(operations) + 1):
        done = operations[:length]
        everything = crash(done, before, reached_disk=lambda _: True, surviving_bytes=lambda _, full: full)
        synced_only = crash(done, before, reached_disk=lambda _: False, surviving_bytes=lambda synced, _: synced)
        left += [(length, everything), (length, synced_only)]
    return left


def put(path: Path, left: dict[Path, bytes]) -> None:
    shutil.rmtree(path)
    (path / "shards").mkdir(parents=True)
    for file, content in left.items():
        file.write_bytes(content)


def test_a_crash_at_any_instant_of_a_drop_leaves_hints_whole_or_none(cask: Path) -> None:
    before, rows, files = contents(cask), hints_of(cask), RecordingFiles()
    drop_hints(cask, files=files)
    after = contents(cask)
    assert len(files.operations) > 8
    for _, left in states(cask, files.operations, before):
        put(cask, left)
        opened = Cask.open(cask)
        for number in range(len(opened)):
            document = opened.read(number)
            if opened.entries[opened.locate(number)[0]].hints is not None:
                assert_same_rows(opened.hints(number), rows[document.id])
        drop_hints(cask)
        assert contents(cask) == after


def test_a_crash_at_any_instant_of_a_publication_leaves_no_shard_without_its_hints(tmp_path: Path) -> None:
    path, capture = tmp_path / "cask", CaptureSpec(tau=0.05, hints=SPEC)
    cask_with_hints(path, SPEC, SHARDS[:1])
    before, files = contents(path), RecordingFiles()
    writer = CaskWriter.create(path, teacher=make_teacher(), capture=capture, version=2, files=files)
    writer.publish(documents_with_hints(SHARDS[1], 1, SPEC))
    acknowledged = len(files.operations)
    assert acknowledged > 8
    for length, left in states(path, files.operations, before):
        put(path, left)
        opened = Cask.open(path)
        assert len(opened) in (3, 5)
        assert len(opened) == 5 or length < acknowledged
        assert opened.has_hints
        assert problems_of(path) == []
        CaskWriter.create(path, teacher=make_teacher(), capture=capture).close()
        assert unlisted(Cask.open(path)) == []
