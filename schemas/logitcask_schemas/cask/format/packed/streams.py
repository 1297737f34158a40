"""What packed documents consist of: streams of symbols, made from the columns of a shard.

The streams, in the order in which a document's bits hold them:

1. token ids, as numbers: their ranks;
2. columns of one byte per position but the counts of draws, in the order of the layout;
3. counts of draws, less what the shard expects at this log r (modulo 256);
4. the place of the next token in each head of more than one entry: 0 the first, 1 the last, k + 1 place k between;
5. the other ids of the heads, as numbers: their ranks;
6. draws, as numbers: in each position the ranks in ascending order, each less the one before;
7. columns of one byte per head entry, then those of one byte per draw.

A number is a symbol, which says how many bits it has, and the bits below its highest.

Shape legend: D documents; L tokens, P positions, H head entries, N draws of all of them; S items of a stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.format.columns import Offsets, ShardColumns, join_planes
from logitcask_schemas.cask.format.layout import HIGH_SUFFIX, Column, Level, RecordLayout
from logitcask_schemas.cask.format.lists import ShardLists
from logitcask_schemas.errors import CaskCorruptionError, InvalidRecordError
from logitcask_schemas.record.extent import IdArray

TOKEN_IDS: Final = "token_ids"
HEAD_IDS: Final = "head_ids"
TAIL_IDS: Final = "tail_ids"
HEAD_COUNTS: Final = "head_counts"
TAIL_COUNTS: Final = "tail_counts"
TAIL_MASS: Final = "log_tail_mass"
NEXT_TOKEN: Final = "next_token"
"""Name of the stream of the next tokens' places."""
ID_COLUMNS: Final = (TOKEN_IDS, HEAD_IDS, TAIL_IDS)
SIZES: Final = 25
"""Symbols of a stream of numbers: they have 0 to 24 bits."""
BYTES: Final = 256
GAP_CONTEXTS: Final = 16
_ID_BITS: Final = np.int64(24)
_SIZE_BITS: Final = np.int64(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Symbols of all documents, with the bits that follow each."""

    name: str
    """Of the column, or `NEXT_TOKEN`."""
    symbols_S: NDArray[np.uint8]
    offsets_D1: Offsets
    """Where each document's symbols start."""
    extra_bits_S: NDArray[np.uint8] | None = None
    """How many bits follow; None: none anywhere."""
    extras_S: NDArray[np.uint32] | None = None
    """They."""
    contexts_S: NDArray[np.uint8] | None = None
    """Which of the stream's codes is each symbol's; None: it has only one."""


def byte_columns(layout: RecordLayout, *levels: Level) -> list[Column]:
    """Columns of one byte per unit of these levels that are packed as they are, level by level."""
    return [
        column
        for level in levels
        for column in layout.columns
        if column.level == level
        and column.dtype == np.uint8
        and column.width is None
        and column.name != TAIL_COUNTS
        and column.name.removesuffix(HIGH_SUFFIX) not in ID_COLUMNS
    ]


def plain_columns(layout: RecordLayout) -> list[Column]:
    """Columns that are not packed: they lie beside the bits as in an Arrow shard."""
    packed = {column.name for column in byte_columns(layout, "position", "head", "tail")} | {TAIL_COUNTS}
    return [
        column
        for column in layout.columns
        if column.name not in packed and column.name.removesuffix(HIGH_SUFFIX) not in ID_COLUMNS
    ]


def expected_counts(columns: ShardColumns, layout: RecordLayout) -> NDArray[np.uint8]:
    """The most frequent count of draws at each code of log r, [256]; empty where log r is no code."""
    if TAIL_MASS not in layout.coded:
        return np.empty(0, dtype=np.uint8)
    pairs = whole(columns, TAIL_MASS).astype(np.int64) * BYTES + whole(columns, TAIL_COUNTS)
    counts = np.bincount(pairs, minlength=BYTES * BYTES).reshape(BYTES, BYTES)
    most_frequent: NDArray[np.uint8] = counts.argmax(axis=1).astype(np.uint8)
    return most_frequent


def streams_of(
    columns: ShardColumns, layout: RecordLayout, expected: NDArray[np.uint8], rank_of_id_V: IdArray | None
) -> list[Stream]:
    """The streams of a shard, in their order.

    Args:
        columns: The shard's.
        layout: Of its cask.
        expected: See `expected_counts`.
        rank_of_id_V: Of the cask's rank table; None where it has none: the ids are the ranks.

    Raises:
        InvalidRecordError: A rule of the format that the packed form relies on is broken: a head lacks the next token,
            draws do not ascend, or an id is outside the vocabulary.
    """
    offsets, next_P = columns.offsets, next_tokens(columns.lists, columns.offsets)
    tokens, head_ids, tail_ids = (_ids(columns, layout, name) for name in ID_COLUMNS)
    head_counts, tail_counts = whole(columns, HEAD_COUNTS), whole(columns, TAIL_COUNTS)
    _require_counts(columns, head_counts, tail_counts)
    place_P = _places(head_ids, head_counts, tokens[next_P])
    within_H = np.arange(len(head_ids)) - np.repeat(np.cumsum(head_counts, dtype=np.int64) - head_counts, head_counts)
    others_H = within_H != np.repeat(place_P, head_counts)
    several_P = head_counts > 1
    base_P = expected[whole(columns, TAIL_MASS)] if len(expected) else np.uint8(0)
    places = _place_symbols(place_P, head_counts)[several_P]
    return [
        _numbers(TOKEN_IDS, _ranks(tokens, layout, rank_of_id_V), offsets["token"]),
        *_bytes(columns, layout, "position"),
        Stream(name=TAIL_COUNTS, symbols_S=tail_counts - base_P, offsets_D1=offsets["position"]),
        Stream(name=NEXT_TOKEN, symbols_S=places, offsets_D1=_count_before(several_P, offsets["position"])),
        _numbers(HEAD_IDS, _ranks(head_ids[others_H], layout, rank_of_id_V), _count_before(others_H, offsets["head"])),
        _gaps(tail_ids, tail_counts, _ranks(tail_ids, layout, rank_of_id_V), offsets["tail"]),
        *_bytes(columns, layout, "head", "tail"),
    ]


def next_tokens(lists: ShardLists, offsets: Mapping[Level, Offsets]) -> NDArray[np.int64]:
    """Where among the shard's tokens the one after each recorded position stands, [P].

    Raises:
        CaskCorruptionError: A document has other positions than its ranges say.
    """
    token_D, lengths_D = offsets["token"][:-1], np.diff(offsets["token"])
    positions_D = np.diff(offsets["position"])
    if (lengths_D < 1).any() or not lists.are_valid(lengths_D):
        raise CaskCorruptionError("documents without tokens, or lists that do not fit their documents")
    wrong = np.flatnonzero(lists.recorded_positions(lengths_D) != positions_D)
    if len(wrong):
        row = int(wrong[0])
        raise CaskCorruptionError(
            f"document {row} has {int(lengths_D[row])} tokens and {int(positions_D[row])} records of positions, "
            f"expected {int(lists.recorded_positions(lengths_D)[row])}"
        )
    within_P = np.arange(int(offsets["position"][-1])) - np.repeat(offsets["position"][:-1], positions_D)
    for row in [] if lists.recorded is None else np.flatnonzero(np.diff(lists.recorded.offsets)).tolist():
        start, stop = offsets["position"][row : row + 2]
        within_P[start:stop] = lists.extent(row).positions(int(lengths_D[row]))
    next_P: NDArray[np.int64] = within_P + np.repeat(token_D, positions_D) + 1
    return next_P


def whole(columns: ShardColumns, name: str) -> NDArray[Any]:
    """All values of a column."""
    array = columns.arrays[name]
    values: NDArray[Any] = np.ascontiguousarray(array[0 : len(array)])
    return values


def bit_lengths(values: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Bits of each number below 2^32; 0 for 0."""
    # Exact: the exponent of a float64, which holds 53 bits.
    return np.frexp(values.astype(np.float64))[1].astype(np.uint8)


def gap_contexts(sizes_N: NDArray[np.uint8], tail_counts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which code each gap has: by the largest size of those before it in its position, and by how many are left."""
    position_N = np.repeat(np.arange(len(tail_counts), dtype=np.int64), tail_counts)
    ends_P = np.cumsum(tail_counts, dtype=np.int64)
    before_N = np.concatenate([np.zeros(min(1, len(sizes_N)), np.uint8), sizes_N[:-1]])
    before_N[(ends_P - tail_counts)[tail_counts > 0]] = 0
    # Positions ascend, so that a maximum over all that came before is one over the position.
    largest_N = np.maximum.accumulate((position_N << _SIZE_BITS) | before_N) - (position_N << _SIZE_BITS)
    left_N = np.repeat(ends_P, tail_counts) - np.arange(len(sizes_N))
    contexts_N = np.clip(largest_N - bit_lengths(left_N.astype(np.uint32)) + 3, 0, GAP_CONTEXTS - 1)
    as_bytes: NDArray[np.uint8] = contexts_N.astype(np.uint8)
    return as_bytes


def _require_counts(columns: ShardColumns, head_counts: NDArray[np.uint8], tail_counts: NDArray[np.uint8]) -> None:
    cuts: tuple[tuple[str, NDArray[np.uint8], Level], ...] = (
        (HEAD_COUNTS, head_counts, "head"),
        (TAIL_COUNTS, tail_counts, "tail"),
    )
    for name, counts_P, level in cuts:
        ends = np.concatenate([[0], np.cumsum(counts_P, dtype=np.int64)])
        if (ends[columns.offsets["position"]] != columns.offsets[level]).any():
            raise InvalidRecordError(f"{name} of a document do not add up to its entries")
    if len(head_counts) and not head_counts.min():
        raise InvalidRecordError(f"position {int(np.argmin(head_counts))} has an empty head")


def _places(head_ids: IdArray, head_counts: NDArray[np.uint8], next_ids_P: IdArray) -> NDArray[np.int64]:
    """Place of the next token in each head."""
    if not len(head_counts):
        return np.empty(0, dtype=np.int64)
    starts = np.cumsum(head_counts, dtype=np.int64) - head_counts
    at_H = np.where(head_ids == np.repeat(next_ids_P, head_counts), np.arange(len(head_ids)), len(head_ids))
    first_P = np.minimum.reduceat(at_H, starts)
    lacking = np.flatnonzero(first_P == len(head_ids))
    if len(lacking):
        raise InvalidRecordError(f"the head of position {int(lacking[0])} of a shard lacks the next token")
    place_P: NDArray[np.int64] = first_P - starts
    return place_P


def _place_symbols(place_P: NDArray[np.int64], head_counts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    last_P = (place_P == head_counts.astype(np.int64) - 1) & (place_P > 0)
    symbols: NDArray[np.uint8] = np.where(last_P, 1, np.where(place_P > 0, place_P + 1, 0)).astype(np.uint8)
    return symbols


def _ids(columns: ShardColumns, layout: RecordLayout, name: str) -> IdArray:
    low: IdArray = whole(columns, name)
    return join_planes(low, whole(columns, name + HIGH_SUFFIX)) if layout.wide_ids else low


def _ranks(ids: IdArray, layout: RecordLayout, rank_of_id_V: IdArray | None) -> NDArray[np.uint32]:
    if len(ids) and int(ids.max()) >= layout.vocab_size:
        raise InvalidRecordError(f"an id is {int(ids.max())}, the vocabulary has {layout.vocab_size}")
    return ids.astype(np.uint32) if rank_of_id_V is None else rank_of_id_V[ids].astype(np.uint32)


def _numbers(
    name: str, values: NDArray[np.uint32], offsets_D1: Offsets, contexts: NDArray[np.uint8] | None = None
) -> Stream:
    sizes = bit_lengths(values)
    extra_bits = np.maximum(sizes, 1) - np.uint8(1)
    return Stream(
        name=name,
        symbols_S=sizes,
        offsets_D1=offsets_D1,
        extra_bits_S=extra_bits,
        extras_S=values & ((np.uint32(1) << extra_bits.astype(np.uint32)) - np.uint32(1)),
        contexts_S=contexts,
    )


def _gaps(
    tail_ids: IdArray, tail_counts: NDArray[np.uint8], ranks_N: NDArray[np.uint32], offsets_D1: Offsets
) -> Stream:
    position_N = np.repeat(np.arange(len(tail_counts), dtype=np.int64), tail_counts)
    if (np.diff((position_N << _ID_BITS) | tail_ids) < 0).any():
        raise InvalidRecordError("draws of a position do not ascend")
    ranks = (np.sort((position_N << _ID_BITS) | ranks_N) & ((1 << _ID_BITS) - 1)).astype(np.uint32)
    ends_P = np.cumsum(tail_counts, dtype=np.int64)
    before_N = np.concatenate([np.zeros(min(1, len(ranks)), np.uint32), ranks[:-1]])
    before_N[(ends_P - tail_counts)[tail_counts > 0]] = 0
    gaps_N = ranks - before_N
    return _numbers(TAIL_IDS, gaps_N, offsets_D1, gap_contexts(bit_lengths(gaps_N), tail_counts))


def _bytes(columns: ShardColumns, layout: RecordLayout, *levels: Level) -> list[Stream]:
    return [
        Stream(name=column.name, symbols_S=whole(columns, column.name), offsets_D1=columns.offsets[column.level])
        for column in byte_columns(layout, *levels)
    ]


def _count_before(chosen: NDArray[np.bool_], offsets_D1: Offsets) -> Offsets:
    """Of the chosen units only, where each document's start."""
    before: Offsets = np.concatenate([[0], np.cumsum(chosen, dtype=np.int64)])[offsets_D1]
    return before
