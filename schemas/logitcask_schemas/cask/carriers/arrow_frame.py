"""Where the buffers of an Arrow shard lie, from its counts alone: for shards whose own framing is damaged.

A shard's framing holds numbers and names, whose encoding has the same size whatever the numbers are; between lie the
buffers, one after the other, each filled up to a multiple of 8 bytes. So a shard of one document shows the sizes of
what is around the buffers of any other.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import LEVELS, Level, RecordLayout
from logitcask_schemas.cask.format.lists import LISTS, ShardLists


@dataclass(frozen=True, slots=True)
class ArrowFrame:
    """Of one shard; all numbers are bytes from the start of its file."""

    size: int
    """Of the file."""
    document_ids: int
    checksums: int
    columns: Mapping[str, tuple[int, int]]
    """Per column of the layout, where its offsets and its values start."""
    lists: Mapping[str, tuple[int, int]]
    """The same of each column of lists there is."""


def arrow_frame(
    documents: int, counts: Mapping[Level, int], layout: RecordLayout, identity: str, lists: Mapping[str, int]
) -> ArrowFrame:
    """The frame of a shard.

    Args:
        documents: in it.
        counts: tokens, positions, head entries and tail draws.
        layout: of its cask.
        identity: of its cask.
        lists: how many numbers each column of lists holds; those without any are not there.
    """
    before, after = _surroundings(layout, identity, tuple(lists))
    at = before
    starts: dict[str, tuple[int, int]] = {}

    def place(size: int) -> int:
        nonlocal at
        start = at
        at += size + -size % 8
        return start

    ids, checksums = place(32 * documents), place(8 * documents)
    for column in layout.columns:
        offsets = place(4 * (documents + 1))
        starts[column.name] = offsets, place(counts[column.level] * column.bytes_per_unit)
    placed = {name: (place(4 * (documents + 1)), place(4 * numbers)) for name, numbers in lists.items()}
    return ArrowFrame(size=at + after, document_ids=ids, checksums=checksums, columns=starts, lists=placed)


@lru_cache(maxsize=8)
def _surroundings(layout: RecordLayout, identity: str, lists: tuple[str, ...]) -> tuple[int, int]:
    """Bytes before the first buffer and after the last one."""
    kinds = [kind for kind in LISTS if kind.name in lists]
    sample = ShardColumns(
        document_ids=np.zeros((1, 32), dtype=np.uint8),
        checksums=np.zeros(1, dtype=np.uint64),
        offsets={level: np.array([0, 1], dtype=np.int64) for level in LEVELS},
        arrays={
            column.name: np.zeros(1 if column.width is None else (1, column.width), dtype=column.dtype)
            for column in layout.columns
        },
        lists=ShardLists.of([kind.joined([np.zeros(kind.group, np.uint32)]) for kind in kinds]),
    )
    sink = io.BytesIO()
    ArrowCarrier().write(sample, layout, identity, sink)
    content = pa.py_buffer(sink.getvalue())
    batch = pa.ipc.open_file(content).get_batch(0)
    before = batch.column("document_id").buffers()[1].address - content.address
    last = layout.columns[-1]
    name, size = (kinds[-1].name, 4 * kinds[-1].group) if kinds else (last.name, last.bytes_per_unit)
    end = batch.column(name).buffers()[-1].address - content.address + size
    return before, content.size - (end + -end % 8)
