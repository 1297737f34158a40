"""Proving all documents of a shard at once: checksums, identities, and the rules of records block by block.

One answer for the whole shard, ten times as fast, since nearly every shard is sound; of one that is not, somebody else
finds out which documents are hit. A shard passes here exactly when every document of it passes there.

Shape legend: D documents of a block, L, P, H and N all their tokens, positions, head entries and tail draws.
"""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from logitcask_schemas.cask.format.columns import Offsets, join_planes
from logitcask_schemas.cask.format.layout import HIGH_SUFFIX, LEVELS, Level
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.record.extent import IdArray, document_id
from logitcask_schemas.record.rules import RecordBlock

_BLOCK_POSITIONS: Final = 1 << 14
"""Checked at once: what is made on the way then stays in the processor's cache."""
_HEADER_BYTES: Final = 64
"""What of a document's checksum comes before its columns."""
_WITHOUT_NAN: Final = frozenset({"head_logprobs", "tail_logprobs"})
"""Besides the columns of positions."""


def is_sound(shard: Shard, vocab_size: int) -> bool:
    """Whether every document has its checksum, is the one it is stored as, and obeys the format.

    Args:
        shard: Opened.
        vocab_size: Of the cask.
    """
    arrays = {name: np.ascontiguousarray(array[0 : len(array)]) for name, array in shard.columns.arrays.items()}
    lengths = np.diff(shard.token_offsets)
    lists = shard.columns.lists
    if (lengths < 2).any() or not lists.are_valid(lengths):
        return False
    if not np.array_equal(lists.recorded_positions(lengths), np.diff(shard.position_offsets)):
        return False
    return (
        _have_checksums(shard, arrays)
        and _have_ids(shard, arrays)
        and all(_is_valid(shard, arrays, *block, vocab_size) for block in _blocks(shard.position_offsets))
    )


def _have_checksums(shard: Shard, arrays: dict[str, NDArray[Any]]) -> bool:
    """Whether every document's bytes give its checksum, see `document_checksum`."""
    offsets = shard.columns.offsets
    headers = np.empty((shard.num_documents, _HEADER_BYTES), dtype=np.uint8)
    headers[:, :32] = shard.document_ids
    sizes = np.stack([np.diff(offsets[level]) for level in LEVELS], axis=1).astype("<u8")
    headers[:, 32:] = sizes.view(np.uint8)
    header_bytes = headers.reshape(-1).data
    parts = [
        (arrays[column.name].reshape(-1).view(np.uint8).data, (offsets[column.level] * column.bytes_per_unit).tolist())
        for column in shard.layout.columns
    ]
    for lists in shard.columns.lists:
        parts.append((lists.values.view(np.uint8).data, (4 * lists.offsets).tolist()))
    for row, stored in enumerate(shard.columns.checksums.tolist()):
        digest = xxhash.xxh3_64(header_bytes[row * _HEADER_BYTES : (row + 1) * _HEADER_BYTES])
        for content, cut in parts:
            digest.update(content[cut[row] : cut[row + 1]])
        if digest.intdigest() != stored:
            return False
    return True


def _have_ids(shard: Shard, arrays: dict[str, NDArray[Any]]) -> bool:
    """Whether every document's token ids give its id, see `document_id`."""
    lists = shard.columns.lists
    others = [np.diff(column.offsets) > 0 for column in (lists.recorded, lists.contexts) if column is not None]
    partial = np.flatnonzero(np.logical_or.reduce(others)) if others else np.empty(0, dtype=np.int64)
    for start, stop in _blocks(shard.position_offsets):
        cut = shard.token_offsets[start : stop + 1]
        content = _ids(shard, arrays, "token_ids", cut).astype("<u4").view(np.uint8).data
        ends = (4 * (cut - cut[0])).tolist()
        ids = [hashlib.sha256(content[a:b]).digest() for a, b in itertools.pairwise(ends)]
        for row in partial[(partial >= start) & (partial < stop)].tolist():
            tokens = _ids(shard, arrays, "token_ids", shard.token_offsets[row : row + 2])
            ids[row - start] = document_id(tokens, shard.extent(row))
        if b"".join(ids) != shard.document_ids[start:stop].tobytes():
            return False
    return True


def _blocks(position_offsets: Offsets) -> Iterator[tuple[int, int]]:
    """First row and end of runs of documents."""
    start, rows = 0, len(position_offsets) - 1
    while start < rows:
        within = int(np.searchsorted(position_offsets, position_offsets[start] + _BLOCK_POSITIONS, side="right")) - 1
        stop = max(start + 1, within)
        yield start, stop
        start = stop


def _is_valid(shard: Shard, arrays: dict[str, NDArray[Any]], start: int, stop: int, vocab_size: int) -> bool:
    """Whether the documents in rows [start, stop) obey the rules of records."""
    cuts: dict[Level, Offsets] = {level: shard.columns.offsets[level][start : stop + 1] for level in LEVELS}

    def part(name: str, level: Level) -> NDArray[Any]:
        return arrays[name][cuts[level][0] : cuts[level][-1]]

    without_nan = _WITHOUT_NAN.union(shard.layout.position_columns)
    columns = [column for column in shard.layout.columns if column.name in without_nan]
    block = RecordBlock(
        position_offsets_D1=cuts["position"] - cuts["position"][0],
        head_offsets_D1=cuts["head"] - cuts["head"][0],
        tail_offsets_D1=cuts["tail"] - cuts["tail"][0],
        head_counts_P=part("head_counts", "position"),
        head_ids_H=_ids(shard, arrays, "head_ids", cuts["head"]),
        tail_counts_P=part("tail_counts", "position"),
        tail_ids_N=_ids(shard, arrays, "tail_ids", cuts["tail"]),
        values={
            column.name: (part(column.name, column.level), int(cuts[column.level][-1] - cuts[column.level][0]))
            for column in columns
        },
        token_ids_L=_ids(shard, arrays, "token_ids", cuts["token"]),
        next_tokens_P=_next_tokens(shard, start, stop),
        head_holds_next=shard.layout.head_holds_next,
    )
    return block.first_fault(vocab_size) is None


def _next_tokens(shard: Shard, start: int, stop: int) -> Offsets | None:
    """Where the token after each recorded position of some documents stands among theirs; None where all have one."""
    recorded = shard.columns.lists.recorded
    if recorded is None or recorded.offsets[start] == recorded.offsets[stop]:
        return None
    first = shard.token_offsets[start:stop] - shard.token_offsets[start]
    lengths = np.diff(shard.token_offsets[start : stop + 1]).tolist()
    extents = [shard.extent(row) for row in range(start, stop)]
    next_tokens_P: Offsets = np.concatenate(
        [at + 1 + extent.positions(length) for at, extent, length in zip(first, extents, lengths, strict=True)]
    )
    return next_tokens_P


def _ids(shard: Shard, arrays: dict[str, NDArray[Any]], name: str, cut: Offsets) -> IdArray:
    window = slice(int(cut[0]), int(cut[-1]))
    low: IdArray = arrays[name][window]
    return join_planes(low, arrays[name + HIGH_SUFFIX][window]) if shard.layout.wide_ids else low
