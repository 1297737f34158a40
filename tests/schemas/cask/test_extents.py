"""Casks of version 2: documents of which some positions are recorded, or which the teacher read under a context."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.describe import cask_stats, describe_positions
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.cask.transfer.split import SplitRule, split_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.errors import CaskCorruptionError, CaskError
from logitcask_schemas.record.extent import WHOLE
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, assert_same, make_document, make_documents, make_teacher, specs

every_carrier = pytest.mark.parametrize("carrier", sorted(CARRIERS))
DOCUMENTS = make_documents([2, 3, 30, 40, 50, 60, 70, 80], 4, extents=True)


def make_cask(path: Path, *shards: list[DocumentRecords], carrier: str = "arrow") -> Path:
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, carrier=carrier, version=2) as writer:
        for documents in shards or (DOCUMENTS[:5], DOCUMENTS[5:]):
            writer.publish(documents)
    return path


def require_holds(path: Path, documents: list[DocumentRecords] = DOCUMENTS) -> None:
    """Every document, whole, and a sound cask."""
    cask = Cask.open(path)
    assert len(cask) == len(documents)
    for document in documents:
        number = cask.find(document.id)
        assert number is not None
        assert_same(cask.read(number), document)
        assert_extents(cask.read(number), document)
    assert [problem for report in verify_shards(cask) for problem in report.problems] == []


def assert_extents(actual: DocumentRecords, expected: DocumentRecords) -> None:
    ranges = [None if d.extent.recorded_R2 is None else d.extent.recorded_R2.tolist() for d in (actual, expected)]
    assert ranges[0] == ranges[1]
    assert actual.extent.context == expected.extent.context


@every_carrier
def test_documents_come_back_as_they_were(tmp_path: Path, carrier: str) -> None:
    cask = make_cask(tmp_path / "cask", carrier=carrier)
    require_holds(cask)
    kinds = {(d.extent.recorded_R2 is None, d.extent.context is None) for d in DOCUMENTS}
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}, "a test of every kind"
    entries = Cask.open(cask).entries
    assert sum(entry.positions for entry in entries) == sum(d.records.num_positions for d in DOCUMENTS)
    assert sum(entry.recorded_documents for entry in entries) == sum(
        d.extent.recorded_R2 is not None for d in DOCUMENTS
    )


@settings(max_examples=20, deadline=None)
@given(data=st.data(), spec=specs(), carrier=st.sampled_from(sorted(CARRIERS)), vocab=st.sampled_from([300, 70_000]))
def test_windows_are_the_records_of_their_positions(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, spec, carrier: str, vocab: int
) -> None:
    documents = [
        make_document(length, 40 + i, spec=spec, vocab_size=vocab, extents=True)
        for i, length in enumerate(data.draw(st.lists(st.integers(2, 40), min_size=1, max_size=4)))
    ]
    path = tmp_path_factory.mktemp("windows") / "cask"
    with CaskWriter.create(path, teacher=make_teacher(vocab), capture=spec, carrier=carrier, version=2) as writer:
        writer.publish(documents)
    cask = Cask.open(path)
    for document in documents:
        number = cask.find(document.id)
        assert number is not None
        last = len(document.token_ids_L) - 1
        start = data.draw(st.integers(0, last - 1))
        stop = data.draw(st.integers(start + 1, last))
        positions = document.extent.positions(last + 1)
        inside = (positions >= start) & (positions < stop)
        window = cask.read_window(number, start, stop)
        expected = replace(
            document,
            token_ids_L=document.token_ids_L[start : stop + 1],
            records=document.records.select(inside),
            extent=document.extent.window(start, stop),
            answer_ranges_R2=window.answer_ranges_R2,
        )
        assert_same(window, expected)
        np.testing.assert_array_equal(window.extent.positions(stop - start + 1) + start, positions[inside])


def test_the_same_tokens_with_other_records_are_other_documents(tmp_path: Path) -> None:
    whole = make_document(30, 4)
    keep_P = np.arange(29) >= 20
    part = replace(whole, records=whole.records.select(keep_P), extent=type(WHOLE).of_mask(keep_P))
    make_cask(tmp_path / "cask", [whole, part])
    require_holds(tmp_path / "cask", [whole, part])


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_cask_of_version_1_refuses_them_and_says_what_to_do(tmp_path: Path, which: int) -> None:
    document = next(d for n, d in enumerate(DOCUMENTS) if n % 4 == which)
    writer = CaskWriter.create(tmp_path / "cask", teacher=make_teacher(), capture=SPEC)
    before = sorted(path.name for path in (tmp_path / "cask").rglob("*"))
    with pytest.raises(CaskError, match=r"is of version 1, which holds records of all positions .* version=2"):
        writer.publish([document])
    with pytest.raises(CaskError, match="version 1"):
        writer.publish_columns(Cask.open(make_cask(tmp_path / "other", [document])).shard(0).columns)
    assert sorted(path.name for path in (tmp_path / "cask").rglob("*")) == before


def test_whole_documents_are_stored_in_version_2_as_in_version_1(tmp_path: Path) -> None:
    """The same shard and entry, byte by byte: what a cask does not use changes nothing."""
    documents = make_documents([10, 20, 30], 5)
    for version in (1, 2):
        path = tmp_path / str(version)
        with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, version=version) as writer:
            writer.publish(documents)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / v / "shards").iterdir()} for v in "12")
    assert one == two
    assert json.loads((tmp_path / "2" / "cask.json").read_text())["version"] == 2


@pytest.mark.parametrize("version", [0, 4, True, "2", 2.0, None])
def test_another_version_is_refused_by_its_number(tmp_path: Path, version: object) -> None:
    from logitcask_schemas.cask.format.sealed_json import seal

    cask = make_cask(tmp_path / "cask")
    document = json.loads((cask / "cask.json").read_text())
    del document["checksum"]
    (cask / "cask.json").write_bytes(seal({**document, "version": version}))
    with pytest.raises(CaskError, match=r"this program reads versions 1 to 3. Upgrade logitcask"):
        Cask.open(cask)


@every_carrier
@pytest.mark.parametrize("target", sorted(CARRIERS))
def test_exports_keep_them(tmp_path: Path, carrier: str, target: str) -> None:
    source = make_cask(tmp_path / "source", carrier=carrier)
    for _ in export_cask(Cask.open(source), LocalTarget(tmp_path / "there"), target):
        pass
    require_holds(tmp_path / "there")
    for _ in export_cask(Cask.open(tmp_path / "there"), LocalTarget(tmp_path / "back"), carrier):
        pass
    files = [sorted((path / "shards").iterdir()) for path in (source, tmp_path / "back")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_merging_and_splitting_keep_them(tmp_path: Path) -> None:
    partial = make_cask(tmp_path / "partial", DOCUMENTS[:5], DOCUMENTS[5:])
    with CaskWriter.create(tmp_path / "whole", teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish(whole := make_documents([10, 20], 6))
    merge_casks(tmp_path / "all", [tmp_path / "whole", partial, make_cask(tmp_path / "again", DOCUMENTS[3:6])])
    require_holds(tmp_path / "all", [*whole, *DOCUMENTS])
    assert Cask.open(tmp_path / "all").manifest.version == 2
    split_cask(tmp_path / "all", (tmp_path / "one", tmp_path / "two"), SplitRule(fraction=0.5, seed=0))
    held = [Cask.open(tmp_path / side) for side in ("one", "two")]
    found = {document.id for cask in held for document in (cask.read(number) for number in range(len(cask)))}
    assert found == {document.id for document in (*whole, *DOCUMENTS)}


@every_carrier
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_damage_is_found_and_the_rest_survives(
    tmp_path_factory: pytest.TempPathFactory, carrier: str, data: st.DataObject
) -> None:
    """One flipped bit anywhere in a shard: verify sees it; repair keeps what it can, as it was, and names the rest."""
    path = make_cask(tmp_path_factory.mktemp("damage") / "cask", carrier=carrier)
    shard = data.draw(st.sampled_from(sorted(p for p in (path / "shards").iterdir() if p.suffix != ".json")))
    content = bytearray(shard.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    shard.write_bytes(content)
    assert [problem for report in verify_shards(Cask.open(path)) for problem in report.problems]
    report = repair_cask(path)
    cask = Cask.open(path)
    kept = {identity.tobytes() for identity in cask.document_ids()}
    hit = {document.id for document in DOCUMENTS} - kept
    assert kept <= {document.id for document in DOCUMENTS}
    assert len(hit) == len(report.lost) + report.unnamed + len(report.requeue)
    by_id = {document.id.hex(): document for document in DOCUMENTS}
    for identity, gone in report.requeue.items():
        assert by_id[identity].extent.context is None, "its context's tokens are nowhere"
        recorded = by_id[identity].extent.recorded_R2
        assert gone.line(identity).get("recorded") == (None if recorded is None else recorded.tolist())
    for document in DOCUMENTS:
        if document.id in kept:
            number = cask.find(document.id)
            assert number is not None
            assert_same(cask.read(number), document)
            assert_extents(cask.read(number), document)
    assert [problem for each in verify_shards(cask) for problem in each.problems] == []


def test_ranges_with_a_right_checksum_must_be_ranges(tmp_path: Path) -> None:
    """A writer that stored what the format forbids is found out."""
    from logitcask_schemas.cask.format import columns as columns_module

    document = next(d for d in DOCUMENTS if d.extent.recorded_R2 is not None and len(d.extent.recorded_R2) > 1)
    writer = CaskWriter.create(tmp_path / "cask", teacher=make_teacher(), capture=SPEC, version=2)
    stored = columns_module.assemble([document], [document.id], Cask.open(make_cask(tmp_path / "x")).layout)
    recorded = stored.lists.recorded
    assert recorded is not None
    shifted = replace(recorded, values=recorded.values + np.uint32(1))
    lists = replace(stored.lists, recorded=shifted)
    sizes = [int(stored.offsets[level][1]) for level in ("token", "position", "head", "tail")]
    slices = columns_module.document_slices(stored.arrays, stored.offsets, Cask.open(tmp_path / "x").layout, 0, lists)
    checksum = columns_module.document_checksum(document.id, sizes, slices)
    writer.publish_columns(replace(stored, lists=lists, checksums=np.array([checksum], dtype=np.uint64)))
    (report,) = verify_shards(Cask.open(tmp_path / "cask"))
    assert report.problems


def test_entries_count_them_and_must_fit(tmp_path: Path) -> None:
    entry = Cask.open(make_cask(tmp_path / "cask")).entries[0]
    fields = entry.model_dump()
    assert entry.tokens - entry.documents > entry.positions
    for change in (
        {"positions": entry.tokens - entry.documents},
        {"recorded_documents": 0},
        {"recorded_documents": entry.documents + 1},
        {"recorded_ranges": entry.positions + 1},
        {"context_documents": entry.documents + 1},
    ):
        with pytest.raises(ValueError, match="documents"):
            ShardEntry.model_validate({**fields, **change})


def test_a_shard_whose_entry_says_otherwise_is_refused(tmp_path: Path) -> None:
    from logitcask_schemas.cask.format.manifest import entry_bytes

    path = make_cask(tmp_path / "cask", DOCUMENTS)
    (path / "index.json").unlink()
    entry = Cask.open(path).entries[0]
    changed = entry.model_copy(update={"context_documents": entry.context_documents - 1})
    (path / "shards" / f"{entry.name}.json").write_bytes(entry_bytes(changed))
    with pytest.raises(CaskCorruptionError, match=r"context_documents is \d; its entry says \d"):
        Cask.open(path).read(0)


def test_show_and_stats_speak_of_them(tmp_path: Path) -> None:
    cask = Cask.open(make_cask(tmp_path / "cask"))
    stats = cask_stats(cask)
    assert (stats.recorded_documents, stats.context_documents) == (4, 4)
    assert stats.positions == sum(d.records.num_positions for d in DOCUMENTS)
    assert {"recorded", "context"} <= stats.column_bytes_per_token.keys()
    for document in DOCUMENTS:
        number = cask.find(document.id)
        assert number is not None
        described = describe_positions(cask, number, start=0, count=100, alternatives=3, text=None)
        assert described["tokens"] == len(document.token_ids_L)
        assert described["recorded"] == len(described["positions"]) == document.records.num_positions
        assert described["context"] == (document.extent.context.length if document.extent.context else 0)
        shown = [position["position"] for position in described["positions"]]
        assert shown == document.extent.positions(len(document.token_ids_L)).tolist()
        for position in described["positions"]:
            assert position["token"] == str(document.token_ids_L[position["position"]])
            assert position["next"] == str(document.token_ids_L[position["position"] + 1])
            assert position["probability"] > 0
