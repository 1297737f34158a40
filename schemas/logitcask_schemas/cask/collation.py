"""Many documents or windows end to end, copied once per column from where they are stored: what a training batch needs.

Shape legend: B windows; over all of them L = P + B tokens, P positions, H head entries, N tail draws. Values in nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.codec_u8 import decode_u8
from logitcask_schemas.cask.columns import join_planes
from logitcask_schemas.cask.layout import HIGH_SUFFIX
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.records import IdArray, Records

Windows: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollatedRecords:
    """B windows end to end. Window b has token_offsets_B1[b + 1] - token_offsets_B1[b] tokens, one position fewer."""

    token_ids_L: IdArray
    token_offsets_B1: NDArray[np.int64]
    """[B + 1] into `token_ids_L`."""
    records: Records
    """Of all positions."""

    @property
    def position_offsets_B1(self) -> NDArray[np.int64]:
        """[B + 1] into the columns with one value per position."""
        return self.token_offsets_B1 - np.arange(len(self.token_offsets_B1))


def collate(rows: Sequence[tuple[Shard, int]], starts: Windows | None, stops: Windows | None) -> CollatedRecords:
    """See `Cask.collate`; at least one row, all of the same layout."""
    layout = rows[0][0].layout
    parts: list[list[Any]] = [[] for _ in layout.columns]
    # This loop is the price of a window: three microseconds, while copying a window of 2,048 positions takes seven.
    windows = zip(rows, _numbers(starts, len(rows)), _numbers(stops, len(rows)), strict=True)
    lengths = [shard.append_window(row, start, stop, parts) for (shard, row), start, stop in windows]
    joined: dict[str, NDArray[Any]] = {}
    for column, pieces in zip(layout.columns, parts, strict=True):
        flat = np.frombuffer(bytearray().join(pieces), dtype=column.dtype)
        values = decode_u8(flat) if column.name in layout.coded else flat
        joined[column.name] = values if column.width is None else values.reshape(-1, column.width)
    wide = layout.wide_ids

    def ids(name: str) -> IdArray:
        return join_planes(joined[name], joined[name + HIGH_SUFFIX]) if wide else joined[name]

    return CollatedRecords(
        token_ids_L=ids("token_ids"),
        token_offsets_B1=np.array(list(accumulate(lengths, initial=0)), dtype=np.int64),
        records=Records(
            head_counts_P=joined["head_counts"],
            head_ids_H=ids("head_ids"),
            head_logprobs_H=joined["head_logprobs"],
            tail_counts_P=joined["tail_counts"],
            tail_ids_N=ids("tail_ids"),
            log_tail_mass_P=joined["log_tail_mass"],
            entropy_P=joined["entropy"],
            tail_logprobs_N=joined.get("tail_logprobs"),
            log_z_PT=joined.get("log_z"),
        ),
    )


def _numbers(given: Windows | None, count: int) -> Sequence[int | None]:
    if given is None:
        return [None] * count
    return given.tolist() if isinstance(given, np.ndarray) else given
