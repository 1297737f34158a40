"""Rows of shards laid end to end as a new shard's columns, as stored: nothing is decoded, encoded or hashed again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.answers import Answers
from logitcask_schemas.cask.columns import ShardColumns
from logitcask_schemas.cask.layout import LEVELS, Column, Level, RecordLayout

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
        answers=Answers.joined([_answers(columns, row) for columns, row in rows]),
    )


def stored_bytes(columns: ShardColumns, row: int, layout: RecordLayout) -> int:
    """Bytes of a document's values, without its id, checksum and offsets."""
    return sum(_size(columns, column.level, row) * column.bytes_per_unit for column in layout.columns)


def _part(columns: ShardColumns, column: Column, row: int) -> NDArray[Any]:
    cut = columns.offsets[column.level]
    part: NDArray[Any] = columns.arrays[column.name][int(cut[row]) : int(cut[row + 1])]
    return part


def _answers(columns: ShardColumns, row: int) -> NDArray[np.uint32]:
    return np.empty(0, dtype=np.uint32) if columns.answers is None else columns.answers.stored(row)


def _size(columns: ShardColumns, level: Level, row: int) -> int:
    return int(columns.offsets[level][row + 1] - columns.offsets[level][row])
