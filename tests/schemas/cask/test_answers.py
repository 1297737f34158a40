"""Which tokens are answers: kept with the document through the whole life of a cask, and proved as its records are."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS, shard_path
from logitcask_schemas.cask.describe import cask_stats, describe_positions
from logitcask_schemas.cask.format.lists import Answers
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.integrity.verify import verify_shard, verify_shards
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.cask.transfer.split import SplitRule, split_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.cli.show import token_strip
from logitcask_schemas.errors import CaskCorruptionError, InvalidRecordError
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, assert_same, make_document, make_teacher
from tests.support.schemas.salvage_cases import flip, overwrite

every_carrier = pytest.mark.parametrize("carrier", list(CARRIERS))


def answering(length: int, seed: int, ranges: list[list[int]] | None) -> DocumentRecords:
    """A document with these ranges; None where it does not say."""
    array = None if ranges is None else np.array(ranges, dtype=np.uint32).reshape(-1, 2)
    return dataclasses.replace(make_document(length, seed), answer_ranges_R2=array)


SAYING = [answering(20, 1, [[4, 9], [12, 20]]), answering(7, 2, []), answering(9, 3, None), answering(5, 4, [[0, 2]])]
SILENT = [answering(6, 5, None), answering(30, 6, None)]
ALL = {document.id: document for document in [*SAYING, *SILENT]}


def make_cask(path: Path, carrier: str = "arrow", *shards: list[DocumentRecords]) -> Path:
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, carrier=carrier) as writer:
        for documents in shards or (SAYING, SILENT):
            writer.publish(documents)
    return path


def require_holds(path: Path, ids: set[bytes] | None = None) -> None:
    cask = Cask.open(path)
    assert [problem for report in verify_shards(cask) for problem in report.problems] == []
    actual = {cask.read(number).id: cask.read(number) for number in range(len(cask))}
    assert actual.keys() == (ALL.keys() if ids is None else ids)
    for identity, document in actual.items():
        assert_same(document, ALL[identity])


def saying_shard(cask: Path) -> Path:
    [entry] = [entry for entry in Cask.open(cask).entries if entry.answer_documents]
    return shard_path(cask, entry)


@every_carrier
def test_they_come_back_as_they_were_given(tmp_path: Path, carrier: str) -> None:
    cask = make_cask(tmp_path / "cask", carrier)
    require_holds(cask)
    by_documents = {entry.documents: entry for entry in Cask.open(cask).entries}
    counts = (by_documents[4].answer_documents, by_documents[4].answer_ranges, by_documents[4].answer_positions)
    assert counts == (3, 4, 5 + 8 + 1)  # the first token of a document is predicted by no position
    assert (by_documents[2].answer_documents, by_documents[2].answer_positions) == (0, 0)
    stats = cask_stats(Cask.open(cask))
    assert (stats.answer_documents, stats.answer_positions) == (3, 14)


def test_a_shard_without_them_has_the_bytes_of_before(tmp_path: Path) -> None:
    """Its entry too: nothing says 0."""
    cask = make_cask(tmp_path / "cask")
    [entry] = [entry for entry in Cask.open(cask).entries if not entry.answer_documents]
    path = shard_path(cask, entry)
    assert b"answers" not in path.read_bytes()
    assert b"answer" not in path.with_suffix(".json").read_bytes()


def test_a_window_has_those_of_its_tokens(tmp_path: Path) -> None:
    cask = Cask.open(make_cask(tmp_path / "cask"))
    number = cask.find(SAYING[0].id)
    assert number is not None
    expected = {(0, 19): [[4, 9], [12, 20]], (6, 13): [[0, 3], [6, 8]], (9, 11): [], (5, 7): [[0, 3]]}
    for (start, stop), ranges in expected.items():
        actual = cask.read_window(number, start, stop).answer_ranges_R2
        assert actual is not None
        assert actual.tolist() == ranges


def test_of_a_document_given_twice_the_first_says(tmp_path: Path) -> None:
    cask = tmp_path / "cask"
    again = answering(20, 1, [[1, 2]])
    assert again.id == SAYING[0].id
    with CaskWriter.create(cask, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish([SAYING[0], again])
        assert writer.publish([again]) is None
    actual = Cask.open(cask).read(0).answer_ranges_R2
    assert actual is not None
    assert actual.tolist() == [[4, 9], [12, 20]]


@pytest.mark.parametrize("ranges", [[[3, 3]], [[5, 4]], [[2, 5], [4, 6]], [[6, 8], [1, 3]], [[0, 0]], [[9, 11]]])
def test_ranges_that_are_none_are_refused(tmp_path: Path, ranges: list[list[int]]) -> None:
    with (
        CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC) as writer,
        pytest.raises(InvalidRecordError, match="answer ranges should ascend"),
    ):
        writer.publish([answering(10, 1, ranges)])


def test_ranges_of_another_kind_are_refused(tmp_path: Path) -> None:
    document = dataclasses.replace(make_document(10, 1), answer_ranges_R2=np.array([[1, 2]]))
    with (
        CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC) as writer,
        pytest.raises(InvalidRecordError, match=r"uint32 of shape \[R, 2\], got int64"),
    ):
        writer.publish([document])


ranges_of_ten = st.lists(st.integers(0, 11), max_size=6).map(lambda edges: edges[: len(edges) // 2 * 2])


@settings(max_examples=80, deadline=None)
@given(documents=st.lists(ranges_of_ten, min_size=1, max_size=4))
def test_the_check_of_a_shard_is_that_of_its_documents(documents: list[list[int]]) -> None:
    """Stored values, whatever they are, of documents of ten tokens."""
    values = [np.array(edges, dtype=np.uint32) for edges in documents]
    answers = Answers.joined(values)
    if answers is None:
        return

    def is_valid(row: int) -> bool:
        try:
            dataclasses.replace(make_document(10, 1), answer_ranges_R2=answers.ranges(row)).check(49_152, where="here")
        except InvalidRecordError:
            return False
        return True

    assert answers.are_valid(np.full(len(documents), 10)) == all(map(is_valid, range(len(documents))))


@every_carrier
@pytest.mark.parametrize("target", list(CARRIERS))
def test_exports_and_imports_keep_them(tmp_path: Path, carrier: str, target: str) -> None:
    source = make_cask(tmp_path / "source", carrier)
    for _ in export_cask(Cask.open(source), LocalTarget(tmp_path / "there"), target):
        pass
    require_holds(tmp_path / "there")
    for _ in export_cask(Cask.open(tmp_path / "there"), LocalTarget(tmp_path / "back"), carrier):
        pass
    assert saying_shard(tmp_path / "back").read_bytes() == saying_shard(source).read_bytes()


def test_merging_keeps_them_whether_shards_are_taken_whole_or_rewritten(tmp_path: Path) -> None:
    whole = make_cask(tmp_path / "whole", "arrow", SAYING)
    mixed = make_cask(tmp_path / "mixed", "arrow", [SILENT[0], SAYING[3]], [SILENT[1]])
    report = merge_casks(tmp_path / "all", [whole, mixed])
    assert (report.linked, report.rewritten) == (2, 1)
    require_holds(tmp_path / "all")


def test_merging_keeps_them_in_whatever_order_the_sources_are_named(tmp_path: Path) -> None:
    silent = make_cask(
        tmp_path / "silent", "arrow", [dataclasses.replace(document, answer_ranges_R2=None) for document in SAYING]
    )
    saying = make_cask(tmp_path / "saying", "arrow", SAYING)
    for name, sources in (("all", [silent, saying]), ("other", [saying, silent])):
        report = merge_casks(tmp_path / name, sources)
        assert (report.documents, report.duplicates, report.answers_left_out) == (len(SAYING), len(SAYING), 0)
        require_holds(tmp_path / name, {document.id for document in SAYING})


def test_merging_counts_what_documents_of_the_target_could_have_said(tmp_path: Path) -> None:
    target = make_cask(tmp_path / "cask", "arrow", [dataclasses.replace(SAYING[0], answer_ranges_R2=None), SILENT[0]])
    source = make_cask(tmp_path / "saying", "arrow", SAYING)
    assert merge_casks(target, [source]).answers_left_out == 1
    assert merge_casks(target, [source]).answers_left_out == 1
    assert merge_casks(target, [make_cask(tmp_path / "silent", "arrow", SILENT)]).answers_left_out == 0


def test_splitting_keeps_them(tmp_path: Path) -> None:
    rule = SplitRule(fraction=0.5, seed=0)
    split_cask(make_cask(tmp_path / "cask"), (tmp_path / "one", tmp_path / "two"), rule)
    for side, path in enumerate((tmp_path / "one", tmp_path / "two")):
        require_holds(path, {identity for identity in ALL if rule.first(identity) == (side == 0)})


@every_carrier
def test_every_flipped_bit_of_them_is_found(tmp_path: Path, carrier: str) -> None:
    cask = make_cask(tmp_path / "cask", carrier)
    path = saying_shard(cask)
    content = path.read_bytes()
    if carrier == "arrow":
        at = content.find(np.array([4, 9, 12, 20, 0, 0], dtype="<u4").tobytes())
        places = range(at, at + 32)
    else:
        places = range(0, len(content), 29)
    assert places[0] >= 0
    [entry] = [entry for entry in Cask.open(cask).entries if entry.answer_documents]
    for place in places:
        flip(path, place, place % 8)
        assert verify_shard(Cask.open(cask), entry).shard_problems
        overwrite(path, content)
    require_holds(cask)


def test_reading_proves_them(tmp_path: Path) -> None:
    cask = make_cask(tmp_path / "cask")
    path = saying_shard(cask)
    flip(path, path.read_bytes().find(np.array([4, 9, 12, 20, 0, 0], dtype="<u4").tobytes()), 1)  # 4 -> 6
    opened = Cask.open(cask)
    with pytest.raises(CaskCorruptionError):
        opened.read(opened.find(SAYING[0].id) or 0)


@pytest.mark.parametrize("damage", ["value", "offset", "footer", "cut"])
@pytest.mark.parametrize("entry_damaged", [False, True], ids=["entry", "no entry"])
def test_a_repair_keeps_documents_with_what_they_say(tmp_path: Path, damage: str, entry_damaged: bool) -> None:
    """Damaged answers take their document with them, and no other; without an entry the whole shard is lost."""
    cask = make_cask(tmp_path / "cask")
    path = saying_shard(cask)
    content = path.read_bytes()
    at = content.find(np.array([4, 9, 12, 20, 0, 0], dtype="<u4").tobytes())
    lost = {"value": 1, "offset": 3, "footer": 0, "cut": 3}[damage]
    if damage == "value":
        flip(path, at, 1)
    elif damage == "offset":
        flip(path, content.rfind(np.array([0, 4, 6, 6, 8], dtype="<i4").tobytes(), 0, at) + 8, 0)
    elif damage == "footer":
        flip(path, len(content) - 60, 3)
    else:
        overwrite(path, content[:at])
    if entry_damaged:
        overwrite(path.with_suffix(".json"), path.with_suffix(".json").read_bytes()[:-1] + b" ")
        (cask / "index.json").unlink()
        flip(path.with_suffix(".json"), 40)
    report = repair_cask(cask)
    assert len(report.requeue) == (0 if entry_damaged else lost)
    assert {bytes.fromhex(identity) for identity in report.lost} == (
        {document.id for document in SAYING} if entry_damaged else set()
    )
    gone = [*report.requeue, *report.lost]
    require_holds(cask, ALL.keys() - {bytes.fromhex(identity) for identity in gone})
    assert repair_cask(cask).quarantine is None


def test_an_entry_that_tells_of_others_is_refused(tmp_path: Path) -> None:
    cask = Cask.open(make_cask(tmp_path / "cask"))
    cask.entries = [
        entry.model_copy(update={"answer_positions": entry.answer_positions + 1}) if entry.answer_documents else entry
        for entry in cask.entries
    ]
    number = cask.find(SAYING[0].id)
    assert number is not None
    with pytest.raises(CaskCorruptionError, match="answer_positions is 14; its entry says 15"):
        cask.read(number)


def test_show_marks_them(tmp_path: Path) -> None:
    cask = Cask.open(make_cask(tmp_path / "cask"))
    for document, answers, marks in (
        (SAYING[0], 13, [4 <= token < 9 or token >= 12 for token in range(1, 20)]),
        (SAYING[1], 0, [False] * 6),
        (SAYING[2], None, [None] * 8),
    ):
        number = cask.find(document.id)
        assert number is not None
        shown = describe_positions(cask, number, start=0, count=99, alternatives=1, text=None)
        assert shown["answers"] == answers
        assert [position["answer"] for position in shown["positions"]] == marks
        strip = token_strip(shown["positions"], "entropy", texts=False)
        underlined = "".join(
            strip.plain[span.start : span.end] for span in strip.spans if "underline" in str(span.style)
        )
        expected = [f"{token} " for token, mark in zip(document.token_ids_L[1:], marks, strict=True) if mark]
        assert underlined == "".join(expected)


def test_a_shard_that_got_shorter_under_its_map_is_an_error_before_it_is_read(tmp_path: Path) -> None:
    cask = Cask.open(make_cask(tmp_path / "cask"))
    shard = cask.shard(0)
    shard.require_size()
    overwrite(shard.path, shard.path.read_bytes())
    shard.require_size()
    with shard.path.open("r+b") as file:
        file.truncate(shard.entry.bytes // 2)
    with pytest.raises(CaskCorruptionError, match=rf"should have {shard.entry.bytes} bytes, by now it has"):
        shard.require_size()
    shard.path.unlink()
    shard.require_size()  # what is mapped stays, without a name too
