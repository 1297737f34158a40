"""Repair where least is left: entry and shard damaged together, framing that is gone, chunks that do not decode."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.carriers.arrow_frame import arrow_frame
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.format.columns import assemble
from logitcask_schemas.cask.format.layout import LEVELS, RecordLayout
from logitcask_schemas.cask.format.lists import list_sizes
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.publication import write_shard
from tests.support.schemas.cask_samples import SPEC, VOCABS, make_documents, make_teacher, specs
from tests.support.schemas.salvage_cases import (
    DOCUMENTS,
    FIRST,
    SECOND,
    change_number,
    files_of,
    flip,
    make_cask,
    overwrite,
    require_sound,
)


@settings(max_examples=15, deadline=None)
@given(
    vocab_size=st.sampled_from(VOCABS),
    spec=specs(),
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=9),
    tails=st.booleans(),
    extents=st.booleans(),
)
def test_a_frame_is_where_arrow_puts_things(
    vocab_size: int, spec, lengths: list[int], tails: bool, extents: bool
) -> None:
    manifest = CaskManifest(teacher=make_teacher(vocab_size), capture=spec, created_by="", created_at="")
    layout, identity = RecordLayout.of(manifest), manifest.identity_digest()
    documents = make_documents(lengths, 5, vocab_size=vocab_size, spec=spec, tails=tails, extents=extents)
    columns = assemble(documents, [document.id for document in documents], layout)
    sink = io.BytesIO()
    write_shard(ArrowCarrier(), columns, layout, identity, sink)
    content = sink.getvalue()
    counts = {level: int(columns.offsets[level][-1]) for level in LEVELS}
    lists = list_sizes(columns.lists.counts())
    frame = arrow_frame(len(documents), counts, layout, identity, lists)
    assert frame.size == len(content)
    assert content[frame.document_ids :].startswith(columns.document_ids.tobytes())
    assert content[frame.checksums :].startswith(columns.checksums.tobytes())
    for column in layout.columns:
        offsets, values = frame.columns[column.name]
        assert content[offsets:].startswith(columns.offsets[column.level].astype("<i4").tobytes())
        assert content[values:].startswith(np.ascontiguousarray(columns.arrays[column.name]).tobytes())
    assert tuple(frame.lists) == columns.lists.names
    for stored in columns.lists:
        offsets, values = frame.lists[stored.name]
        assert content[offsets:].startswith(stored.offsets.astype("<i4").tobytes())
        assert content[values:].startswith(stored.values.tobytes())


@pytest.mark.parametrize("table", [True, False], ids=["table", "no table"])
@pytest.mark.parametrize("entry_damage", ["sha256", "documents", "cut", "empty", "zeros"])
@pytest.mark.parametrize("shard_damage", ["record", "footer", "header", "cut", "zeros", "missing", "empty"])
def test_entry_and_shard_damaged_together_are_lost_by_name_or_number(
    tmp_path: Path, shard_damage: str, entry_damage: str, table: bool
) -> None:
    """Without an index nobody says where in the file a document would be; the table of documents still says which."""
    cask = make_cask(tmp_path / "cask", table=table)
    shard, entry = files_of(cask, FIRST[0])
    content = shard.read_bytes()
    if shard_damage == "record":
        flip(shard, content.find(FIRST[1].records.head_logprobs_H.tobytes()))
    elif shard_damage in ("footer", "header"):
        flip(shard, len(content) - 60 if shard_damage == "footer" else 20, 3)
    elif shard_damage == "missing":
        shard.unlink()
    else:
        overwrite(shard, {"cut": content[:-100], "zeros": bytes(len(content)), "empty": b""}[shard_damage])
    if entry_damage == "sha256":
        flip(entry, entry.read_bytes().find(b'"sha256":"') + 12)
    elif entry_damage == "documents":
        change_number(entry, entry_damage)
    else:
        overwrite(entry, {"cut": entry.read_bytes()[:40], "empty": b"", "zeros": bytes(200)}[entry_damage])
    report = repair_cask(cask)
    assert require_sound(cask, report) == {document.id for document in SECOND}
    assert report.damaged_shards == [entry.stem]
    assert f"shard {entry.stem}: its entry is damaged, and no file of it is sound: its documents are lost" in (
        report.problems
    )
    assert set(report.lost) == ({document.id.hex() for document in FIRST} if table else set())
    assert report.unnamed == (0 if table else 1)
    assert report.quarantine is not None
    assert (report.quarantine / entry.name).is_file()
    assert (report.quarantine / shard.name).is_file() == (shard_damage != "missing")


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
    requeued = set(report.requeue)
    assert 0 < len(requeued) < 4
    assert report.kept_documents == 4 - len(requeued)
    cask = Cask.open(tmp_path)
    assert {*requeued, *(identity.tobytes().hex() for identity in cask.document_ids())} == {
        d.id.hex() for d in documents
    }
    assert repair_cask(tmp_path).quarantine is None


@settings(max_examples=30, deadline=None)
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
