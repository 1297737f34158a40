"""Proving a whole shard at once says the same as proving its documents one by one, whatever is wrong with them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask.format.columns import ShardColumns, assemble, document_checksum, document_slices
from logitcask_schemas.cask.format.layout import LEVELS, RecordLayout
from logitcask_schemas.cask.format.lists import ShardLists
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.integrity import whole_shard
from logitcask_schemas.cask.integrity.verify import require_valid
from logitcask_schemas.cask.integrity.whole_shard import is_sound
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.errors import CaskError, InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.record_arrays import record_arrays
from tests.support.schemas.cask_samples import SPEC, VOCABS, make_document, make_teacher, specs


def layout_of(vocab_size: int, spec: CaptureSpec) -> RecordLayout:
    return RecordLayout.of(CaskManifest(teacher=make_teacher(vocab_size), capture=spec, created_by="", created_at=""))


def shard_of(columns: ShardColumns, layout: RecordLayout) -> Shard:
    """A shard in memory whose entry agrees with it."""
    counts = {level: int(columns.offsets[level][-1]) for level in LEVELS}
    entry = ShardEntry.model_construct(  # damaged columns may have counts that no entry has
        name="0" * 32,
        carrier="arrow",
        bytes=0,
        sha256="0" * 64,
        identity="0" * 64,
        documents=len(columns.document_ids),
        tokens=counts["token"],
        positions=counts["position"],
        head_entries=counts["head"],
        tail_entries=counts["tail"],
        **cast("Any", columns.lists.counts()),
    )
    return Shard(Path("shard"), entry, layout, columns)


def faults(shard: Shard, vocab_size: int) -> list[int]:
    """Rows that are refused when they are proved one by one."""
    verdicts = []
    for row in range(shard.num_documents):
        try:
            shard.verify(row)
            require_valid(shard, row, vocab_size)
        except (CaskError, InvalidRecordError):
            verdicts.append(row)
    return verdicts


def with_column(document: DocumentRecords, name: str, column: np.ndarray | None) -> DocumentRecords:
    columns = document.records.position_columns
    changed: dict[str, Any] = {"position_columns": {**columns, name: column}} if name in columns else {name: column}
    return dataclasses.replace(document, records=dataclasses.replace(document.records, **changed))


def set_value(name: str, value: Any, at: int = -1) -> Callable[[DocumentRecords], DocumentRecords]:
    def change(document: DocumentRecords) -> DocumentRecords:
        column = record_arrays(document.records)[name].copy()
        column[at] = value
        return with_column(document, name, column)

    return change


def without_next_token(document: DocumentRecords) -> DocumentRecords:
    ids = document.records.head_ids_H.copy()
    first = int(document.records.head_counts_P[0])
    ids[:first] = (int(document.token_ids_L[1]) + 1) % 300
    return with_column(document, "head_ids_H", ids)


def descending(document: DocumentRecords) -> DocumentRecords:
    counts = document.records.tail_counts_P
    at = int(np.flatnonzero(counts > 1)[0])
    start = int(counts[:at].sum())
    ids = document.records.tail_ids_N.copy()
    ids[start], ids[start + 1] = 7, 6
    return with_column(document, "tail_ids_N", ids)


def moved_head(document: DocumentRecords) -> DocumentRecords:
    """Counts that add up but belong to other positions: the heads lose their next tokens."""
    counts = document.records.head_counts_P.copy()
    counts[0], counts[1] = counts[0] - 1, counts[1] + 1
    return with_column(document, "head_counts_P", counts)


def moved_empty(document: DocumentRecords) -> DocumentRecords:
    counts = document.records.head_counts_P.copy()
    counts[1], counts[0] = counts[1] + counts[0], 0
    return with_column(document, "head_counts_P", counts)


FAULTS: dict[str, Callable[[DocumentRecords], DocumentRecords]] = {
    "none": lambda document: document,
    "head id": set_value("head_ids_H", 300),
    "tail id": set_value("tail_ids_N", 301),
    "token id": lambda document: dataclasses.replace(
        document, token_ids_L=np.r_[np.uint16(300), document.token_ids_L[1:]]
    ),
    "next token": without_next_token,
    "descending draws": descending,
    "head logprob": set_value("head_logprobs_H", np.nan),
    "tail mass": set_value("log_tail_mass", np.nan),
    "entropy": set_value("entropy", np.nan),
    "negative NaN": set_value("entropy", -np.float16(np.nan)),
    "minus infinity": set_value("log_tail_mass", -np.inf),
    "empty head": moved_empty,
    "head counts": set_value("head_counts_P", 250),
    "tail counts": set_value("tail_counts_P", 250),
    "moved head": moved_head,
}


@pytest.mark.parametrize("block", [1, 64, 1 << 14])
@pytest.mark.parametrize("row", [0, 2, 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_one_document(fault: str, row: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_shard, "_BLOCK_POSITIONS", block)
    layout = layout_of(300, SPEC)
    documents = [make_document(length, 8, vocab_size=300) for length in (30, 40, 60, 2, 50)]
    documents[row] = FAULTS[fault](documents[row])
    shard = shard_of(assemble(documents, [document.id for document in documents], layout), layout)
    refused = faults(shard, 300)
    assert refused == ([] if fault in ("none", "minus infinity") else [row])
    assert is_sound(shard, 300) == (not refused)


@pytest.mark.parametrize("name", ["tail_logprobs_N", "log_z"])
def test_no_optional_value_is_nan(name: str) -> None:
    spec = CaptureSpec(tail_logprobs=True, temperatures=(2.0,))
    layout = layout_of(300, spec)
    documents = [make_document(length, 8, vocab_size=300, spec=spec) for length in (30, 40)]
    documents[1] = set_value(name, np.nan)(documents[1])
    shard = shard_of(assemble(documents, [document.id for document in documents], layout), layout)
    assert faults(shard, 300) == [1]
    assert not is_sound(shard, 300)


@settings(max_examples=150)
@given(
    vocab_size=st.sampled_from(VOCABS),
    spec=specs(),
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=9),
    tails=st.booleans(),
    extents=st.booleans(),
    block=st.sampled_from([1, 16, 1 << 14]),
    data=st.data(),
)
def test_any_changed_byte(
    vocab_size: int, spec: CaptureSpec, lengths: list[int], tails: bool, extents: bool, block: int, data: st.DataObject
) -> None:
    """With the checksum made to fit it, or not."""
    layout = layout_of(vocab_size, spec)
    documents = [
        make_document(length, 9 + i, vocab_size=vocab_size, spec=spec, tails=tails, extents=extents)
        for i, length in enumerate(lengths)
    ]
    columns = assemble(documents, [document.id for document in documents], layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_shard, "_BLOCK_POSITIONS", block)
        assert is_sound(shard_of(columns, layout), vocab_size)
        arrays = {name: array[0 : len(array)].copy() for name, array in columns.arrays.items()}
        arrays |= {column.name: column.values.copy() for column in columns.lists}
        content = arrays[data.draw(st.sampled_from(sorted(arrays)))].reshape(-1).view(np.uint8)
        if len(content):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        lists = ShardLists.of([dataclasses.replace(column, values=arrays.pop(column.name)) for column in columns.lists])
        changed = dataclasses.replace(columns, arrays=arrays, lists=lists)
        if data.draw(st.booleans()):
            changed = resealed(changed, layout)
        shard = shard_of(changed, layout)
        assert is_sound(shard, vocab_size) == (not faults(shard, vocab_size))


def resealed(columns: ShardColumns, layout: RecordLayout) -> ShardColumns:
    """With the checksums that the bytes give."""
    checksums = []
    for row, identity in enumerate(columns.document_ids):
        sizes = [int(columns.offsets[level][row + 1] - columns.offsets[level][row]) for level in LEVELS]
        slices = document_slices(columns.arrays, columns.offsets, layout, row, columns.lists)
        checksums.append(document_checksum(identity.tobytes(), sizes, slices))
    return dataclasses.replace(columns, checksums=np.asarray(checksums, dtype=np.uint64))


@pytest.mark.parametrize("what", ["document_ids", "checksums", "offsets"])
def test_ids_checksums_and_offsets(what: str) -> None:
    layout = layout_of(300, SPEC)
    documents = [make_document(length, 8, vocab_size=300) for length in (30, 40, 60)]
    columns = assemble(documents, [document.id for document in documents], layout)
    if what == "offsets":
        moved = {level: cut.copy() for level, cut in columns.offsets.items()}
        moved["head"][1] += 1
        changed = dataclasses.replace(columns, offsets=moved)
    else:
        array = getattr(columns, what).copy()
        array[1] ^= 1
        changed = dataclasses.replace(columns, **{what: array})
    assert is_sound(shard_of(columns, layout), 300)
    for candidate in (changed, resealed(changed, layout)):
        shard = shard_of(candidate, layout)
        assert is_sound(shard, 300) == (not faults(shard, 300))
    assert not is_sound(shard_of(changed, layout), 300)
