"""Many documents or windows end to end, copied once per column from where they are stored: what a training batch needs.

Shape legend: B windows; over all of them L tokens, P positions, H head entries, N tail draws. Values in nats.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import getitem
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.format.codec_u8 import decode_u8
from logitcask_schemas.cask.format.columns import join_planes
from logitcask_schemas.cask.format.layout import HIGH_SUFFIX, RecordLayout
from logitcask_schemas.cask.lazy_shard import LazyShard
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.record.extent import IdArray
from logitcask_schemas.record.records import Records

Windows: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollatedRecords:
    """B windows end to end.

    Window b has one token more than positions, and one more for each of its context tokens and of its positions that
    have no record.
    """

    token_ids_L: IdArray
    token_offsets_B1: NDArray[np.int64]
    """[B + 1] into `token_ids_L`."""
    position_offsets_B1: NDArray[np.int64]
    """[B + 1] into the columns with one value per position."""
    records: Records
    """Of all positions."""
    slots_P: NDArray[np.int64] | None = None
    """Which of its window's tokens each position follows, counted from the window's first one. None where every window
    has the records of its last positions, each of them."""

    @property
    def num_windows(self) -> int:
        """B."""
        return len(self.token_offsets_B1) - 1


def collate(
    rows: Sequence[tuple[Shard, int]],
    layout: RecordLayout,
    starts: Windows | None = None,
    stops: Windows | None = None,
    token_starts: Windows | None = None,
) -> CollatedRecords:
    """As `Cask.collate`, from rows of any shards whose columns are those of the layout; no rows give empty columns."""
    count = len(rows)
    _prepare(rows)
    windows = zip(rows, _numbers(starts, count), _numbers(stops, count), _numbers(token_starts, count), strict=True)
    # This loop is the price of a window: three microseconds; copying 2,048 positions takes six. So it makes two flat
    # lists, windows times columns, and leaves the rest to C.
    arrays: list[Any] = []
    cuts: list[slice] = []
    for (shard, row), start, stop, token_start in windows:
        shard.append_window(row, start, stop, token_start, arrays, cuts)
    parts, stride = list(map(getitem, arrays, cuts)), len(layout.columns)
    parts_of: dict[str, list[Any]] = {}
    joined: dict[str, NDArray[Any]] = {}
    for number, column in enumerate(layout.columns):
        parts_of[column.name] = parts[number::stride]
        flat = np.frombuffer(bytearray().join(parts_of[column.name]), column.dtype)
        values = decode_u8(flat, column.name) if column.name in layout.coded else flat
        joined[column.name] = values if column.width is None else values.reshape(-1, column.width)

    def ids(name: str) -> IdArray:
        high = joined.get(name + HIGH_SUFFIX)
        return joined[name] if high is None else join_planes(joined[name], high)

    partial = any(shard.lists.recorded is not None for shard, _ in rows)
    return CollatedRecords(
        slots_P=_slots(rows, starts, stops, token_starts) if partial else None,
        token_ids_L=ids("token_ids"),
        token_offsets_B1=_offsets(parts_of["token_ids"]),
        position_offsets_B1=_offsets(parts_of["head_counts"]),
        records=Records(
            head_counts_P=joined["head_counts"],
            head_ids_H=ids("head_ids"),
            head_logprobs_H=joined["head_logprobs"],
            tail_counts_P=joined["tail_counts"],
            tail_ids_N=ids("tail_ids"),
            position_columns={name: joined[name] for name in layout.position_columns},
            tail_logprobs_N=joined.get("tail_logprobs"),
        ),
    )


def _prepare(rows: Sequence[tuple[Shard, int]]) -> None:
    """Have the documents of lazy shards decoded, those of one shard together."""
    lazy: dict[LazyShard, list[int]] = {}
    for shard, row in rows:
        if isinstance(shard, LazyShard):
            lazy.setdefault(shard, []).append(row)
    for shard, numbers in lazy.items():
        shard.prepare(numbers)


def _slots(
    rows: Sequence[tuple[Shard, int]], starts: Windows | None, stops: Windows | None, token_starts: Windows | None
) -> NDArray[np.int64]:
    """As `CollatedRecords.slots_P`; for batches in which a shard holds documents that are recorded in part."""
    parts, count = list[NDArray[np.int64]](), len(rows)
    windows = zip(rows, _numbers(starts, count), _numbers(stops, count), _numbers(token_starts, count), strict=True)
    for (shard, row), start, stop, token_start in windows:
        first, last = start or 0, int(np.diff(shard.token_offsets[row : row + 2])[0]) - 1 if stop is None else stop
        positions = shard.extent(row).window(first, last).positions(last - first + 1)
        parts.append(positions + (first - (first if token_start is None else token_start)))
    return np.concatenate(parts)


def _offsets(parts_B: Collection[Any]) -> NDArray[np.int64]:
    return np.fromiter(accumulate(map(len, parts_B), initial=0), dtype=np.int64, count=len(parts_B) + 1)


def _numbers(window_ends: Windows | None, count: int) -> Sequence[int | None]:
    if window_ends is None:
        return [None] * count
    return window_ends.tolist() if isinstance(window_ends, np.ndarray) else window_ends
