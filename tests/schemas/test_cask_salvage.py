"""Repair where least is left: entry and shard damaged together, chunks that do not decode.

Whatever is proved document by document is kept, whatever has its tokens is listed for capture, the rest is named or at
least counted.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from cask_samples import SPEC, VOCABS, make_documents, make_teacher, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from salvage_cases import DOCUMENTS, FIRST, SECOND, change_number, files_of, flip, make_cask, overwrite, require_sound

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.arrow_frame import arrow_frame
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.format.columns import assemble
from logitcask_schemas.cask.format.layout import LEVELS, RecordLayout
from logitcask_schemas.cask.format.manifest import CaskManifest, ShardEntry
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.publication import write_shard


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
    ranges = 0 if columns.answers is None else columns.answers.counts().ranges
    frame = arrow_frame(len(documents), counts, layout, identity, answer_ranges=ranges)
    assert frame.size == len(content)
    assert content[frame.document_ids :].startswith(columns.document_ids.tobytes())
    assert content[frame.checksums :].startswith(columns.checksums.tobytes())
    for column in layout.columns:
        offsets, values = frame.columns[column.name]
        assert content[offsets:].startswith(columns.offsets[column.level].astype("<i4").tobytes())
        assert content[values:].startswith(np.ascontiguousarray(columns.arrays[column.name]).tobytes())
    assert (frame.answers is None) == (columns.answers is None)
    if frame.answers is not None:
        assert content[frame.answers[0] :].startswith(columns.answers.offsets.astype("<i4").tobytes())
        assert content[frame.answers[1] :].startswith(columns.answers.values.tobytes())


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


def test_entries_stay_comparable() -> None:
    """Guesses are told apart by their numbers."""
    fields = {"name": "a" * 32, "bytes": 1, "sha256": "b" * 64, "identity": "c" * 64, "documents": 1}
    one = ShardEntry(**fields, tokens=2, positions=1, head_entries=1, tail_entries=0)  # type: ignore[arg-type]
    assert len({one, one.model_copy(), one.model_copy(update={"bytes": 2})}) == 2
