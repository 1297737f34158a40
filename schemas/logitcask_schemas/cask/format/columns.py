"""The logical arrays of one shard, which every carrier stores and gives back unchanged.

Shape legend: D documents, and along a column the sum over documents of tokens, positions, head entries or tail draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from logitcask_schemas.cask.format.codec_u8 import encode_u8
from logitcask_schemas.cask.format.hint_columns import HintColumns
from logitcask_schemas.cask.format.layout import HIGH_SUFFIX, LEVELS, Column, Level, RecordLayout
from logitcask_schemas.cask.format.lists import NO_LISTS, ShardLists
from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.records import DocumentRecords

Offsets: TypeAlias = NDArray[np.int64]


class ColumnArray(Protocol):
    """A stored column: a numpy array, or anything that slices to one. Every carrier of ours gives numpy arrays."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, window: slice, /) -> Any:
        """The values in [start, stop) as a numpy array."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardColumns:
    """A shard without its file format."""

    document_ids: NDArray[np.uint8]
    """SHA-256 over each document's token ids, [D, 32]."""
    checksums: NDArray[np.uint64]
    """xxh3-64 of each document, see `document_checksum`, [D]."""
    offsets: Mapping[Level, Offsets]
    """Per level, where each document starts and the last one ends, [D + 1]."""
    arrays: Mapping[str, ColumnArray]
    """One per column of the layout, all documents end to end: [units], or [units, width]."""
    lists: ShardLists = NO_LISTS
    """What documents say beside their records."""
    hints: HintColumns | None = None
    """What lies in the file beside the shard, where somebody has asked for it; carriers do not store it."""


def document_checksum(document_id: bytes, sizes: Sequence[int], slices: Sequence[NDArray[Any]]) -> int:
    """xxh3-64 over one document's bytes as stored.

    Args:
        document_id: 32 bytes.
        sizes: Number of tokens, positions, head entries and tail draws; each enters as little-endian u64.
        slices: The document's part of every column, see `document_slices`.
    """
    digest = xxhash.xxh3_64(document_id + np.asarray(sizes, dtype="<u8").tobytes())
    for part in slices:
        digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return int(digest.intdigest())


def assemble(documents: Sequence[DocumentRecords], ids: Sequence[bytes], layout: RecordLayout) -> ShardColumns:
    """Lay documents end to end in the stored dtypes.

    Args:
        documents: At least one; their records must have passed `Records.check` with the cask's vocabulary.
        ids: The documents' ids, 32 bytes each.
        layout: Of the cask they go to.

    Raises:
        InvalidRecordError: A document lacks an optional column that the cask stores, or brings one that it does not.
    """
    parts = [
        _document_columns(document, identity, layout, f"document {identity.hex()[:16]}")
        for document, identity in zip(documents, ids, strict=True)
    ]
    arrays: dict[str, NDArray[Any]] = {}
    for column in layout.columns:
        pieces = [part[column.name] for part in parts]
        joined = np.concatenate(pieces, dtype=column.dtype, casting="same_kind")
        arrays[column.name] = joined if column.width is None else joined.reshape(-1, column.width)
    lengths: dict[Level, list[int]] = {
        "token": [len(document.token_ids_L) for document in documents],
        "position": [document.records.num_positions for document in documents],
        "head": [len(document.records.head_ids_H) for document in documents],
        "tail": [len(document.records.tail_ids_N) for document in documents],
    }
    offsets = {level: _offsets(lengths[level]) for level in LEVELS}
    lists = ShardLists.of_documents(documents)
    checksums = [
        document_checksum(identity, sizes, document_slices(arrays, offsets, layout, row, lists))
        for row, (identity, sizes) in enumerate(zip(ids, zip(*lengths.values(), strict=True), strict=True))
    ]
    return ShardColumns(
        document_ids=np.frombuffer(b"".join(ids), dtype=np.uint8).reshape(-1, 32),
        checksums=np.asarray(checksums, dtype=np.uint64),
        offsets=offsets,
        arrays=arrays,
        lists=lists,
        hints=_assembled_hints(documents, ids),
    )


def _assembled_hints(documents: Sequence[DocumentRecords], ids: Sequence[bytes]) -> HintColumns | None:
    parts = [document.hints for document in documents if document.hints is not None]
    return HintColumns.of_documents(parts, ids) if len(parts) == len(documents) else None


def document_slices(
    arrays: Mapping[str, ColumnArray],
    offsets: Mapping[Level, Offsets],
    layout: RecordLayout,
    row: int,
    lists: ShardLists,
) -> list[NDArray[Any]]:
    """What every stored column has of one document: columns of the layout in their order, then lists."""
    slices = [
        arrays[column.name][int(offsets[column.level][row]) : int(offsets[column.level][row + 1])]
        for column in layout.columns
    ]
    return [*slices, *(column.stored(row) for column in lists)]


def join_planes(low: NDArray[Any], high: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Ids from their planes: bits 0 to 15, uint16, and bits 16 to 23."""
    joined = high.astype(np.uint32)
    joined <<= np.uint32(16)
    joined |= low
    return joined


def _document_columns(
    document: DocumentRecords, identity: bytes, layout: RecordLayout, where: str
) -> dict[str, NDArray[Any]]:
    records = document.records
    columns: dict[str, NDArray[Any]] = {
        "head_counts": records.head_counts_P,
        "head_logprobs": records.head_logprobs_H,
        "tail_counts": records.tail_counts_P,
    }
    for name, ids in (
        ("token_ids", document.token_ids_L),
        ("head_ids", records.head_ids_H),
        ("tail_ids", records.tail_ids_N),
    ):
        # Checked against the vocabulary before, so nothing is cut off here but the bits of the other plane.
        columns[name] = ids.astype(np.uint16)
        if layout.wide_ids:
            columns[name + HIGH_SUFFIX] = (ids.astype(np.uint32) >> np.uint32(16)).astype(np.uint8)
    _add_optional(columns, "tail_logprobs", records.tail_logprobs_N, layout, where, units=len(records.tail_ids_N))
    for name in {**records.position_columns, **dict.fromkeys(layout.position_columns)}:
        _add_optional(columns, name, records.position_columns.get(name), layout, where, units=records.num_positions)
    for name in layout.coded:
        columns[name] = encode_u8(columns[name], column=name, seed=layout.seed, document_id=identity)
    return columns


def _add_optional(
    columns: dict[str, NDArray[Any]],
    name: str,
    values: NDArray[Any] | None,
    layout: RecordLayout,
    where: str,
    *,
    units: int,
) -> None:
    """Add an optional column after requiring that record and cask agree on it; no units need no column."""
    column = next((column for column in layout.columns if column.name == name), None)
    if column is None:
        if values is not None and values.size:
            raise InvalidRecordError(f"{where}: has {name}, which this cask's capture spec does not store")
        return
    if values is None and units:
        raise InvalidRecordError(f"{where}: lacks {name}, which this cask's capture spec stores")
    flat = np.empty(0, dtype=np.float16) if values is None else values.reshape(-1)
    if flat.size != units * column.values_per_unit:
        raise InvalidRecordError(
            f"{where}: {name} should have {units} x {column.values_per_unit} values, it has {flat.size}"
        )
    columns[name] = flat


def _offsets(lengths: Sequence[int]) -> Offsets:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


Row = tuple[ShardColumns, int]
"""A document: the columns it lies in, and its number there."""


def gather_rows(rows: Sequence[Row], layout: RecordLayout) -> ShardColumns:
    """The columns of a shard that holds these documents in this order.

    Checksums cover what is stored of a document and nothing else, so they move with it. Whoever gathers has proved
    the documents, see `Shard.verify`.

    Args:
        rows: At least one, all of the same layout.
        layout: Of the cask.
    """
    sizes = {level: [_size(columns, level, row) for columns, row in rows] for level in LEVELS}
    arrays = {
        column.name: np.concatenate([_part(columns, column, row) for columns, row in rows]) for column in layout.columns
    }
    return ShardColumns(
        document_ids=np.stack([columns.document_ids[row] for columns, row in rows]),
        checksums=np.array([columns.checksums[row] for columns, row in rows], dtype=np.uint64),
        offsets={level: np.cumsum([0, *sizes[level]], dtype=np.int64) for level in LEVELS},
        arrays=arrays,
        lists=ShardLists.joined([(columns.lists, row) for columns, row in rows]),
        hints=HintColumns.gathered([(columns.hints, row) for columns, row in rows]),
    )


def stored_bytes(columns: ShardColumns, row: int, layout: RecordLayout) -> int:
    """Bytes of a document's values, hints among them, without its id, checksum and offsets."""
    hints = 0 if columns.hints is None else columns.hints.of(row).num_bytes
    return hints + sum(_size(columns, column.level, row) * column.bytes_per_unit for column in layout.columns)


def _part(columns: ShardColumns, column: Column, row: int) -> NDArray[Any]:
    cut = columns.offsets[column.level]
    part: NDArray[Any] = columns.arrays[column.name][int(cut[row]) : int(cut[row + 1])]
    return part


def _size(columns: ShardColumns, level: Level, row: int) -> int:
    return int(columns.offsets[level][row + 1] - columns.offsets[level][row])
