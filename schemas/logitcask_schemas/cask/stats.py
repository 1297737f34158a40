"""Figures of a cask from its index alone: sizes, entries per position, bytes per token and column."""

from dataclasses import dataclass

from logitcask_schemas.cask.answers import ANSWERS_NAME
from logitcask_schemas.cask.arrow_carrier import ArrowCarrier
from logitcask_schemas.cask.reader import Cask


@dataclass(frozen=True, slots=True, kw_only=True)
class CaskStats:
    """Counts are sums over all shards; bytes per token divide by the number of tokens."""

    shards: int
    documents: int
    tokens: int
    positions: int
    head_entries: int
    tail_entries: int
    answer_documents: int
    """Documents that say which of their tokens are answers, or that none is."""
    answer_positions: int
    """Positions that predict a token of an answer of these."""
    bytes: int
    """Of the shards' files, everything included."""
    bytes_per_token: float
    head_entries_per_position: float
    tail_draws_per_position: float
    column_bytes_per_token: dict[str, float]
    """Per column, values only, before compression; `overhead` is the rest: offsets, ids, checksums, file headers.
    Where a carrier compresses, the rest is `overhead - compression`, mostly negative."""


def cask_stats(cask: Cask) -> CaskStats:
    """Figures of a cask; reads no shard."""
    units = {
        "token": cask.num_tokens,
        "position": cask.num_positions,
        "head": sum(entry.head_entries for entry in cask.entries),
        "tail": sum(entry.tail_entries for entry in cask.entries),
    }
    tokens, positions = max(units["token"], 1), max(units["position"], 1)
    columns = {column.name: units[column.level] * column.bytes_per_unit for column in cask.layout.columns}
    if ranges := sum(entry.answer_ranges for entry in cask.entries):
        columns[ANSWERS_NAME] = 8 * ranges
    rest = "overhead" if all(entry.carrier == ArrowCarrier.name for entry in cask.entries) else "overhead - compression"
    columns[rest] = cask.num_bytes - sum(columns.values())
    return CaskStats(
        shards=len(cask.entries),
        documents=len(cask),
        tokens=units["token"],
        positions=units["position"],
        head_entries=units["head"],
        tail_entries=units["tail"],
        answer_documents=sum(entry.answer_documents for entry in cask.entries),
        answer_positions=sum(entry.answer_positions for entry in cask.entries),
        bytes=cask.num_bytes,
        bytes_per_token=cask.num_bytes / tokens,
        head_entries_per_position=units["head"] / positions,
        tail_draws_per_position=units["tail"] / positions,
        column_bytes_per_token={name: size / tokens for name, size in columns.items()},
    )
