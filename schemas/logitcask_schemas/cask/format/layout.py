"""Names and shapes of what a cask holds: files of the directory, columns of a shard.

A column has one level, which says what its values are counted by: tokens (L per document), positions (L - 1), head
entries or tail draws. All columns of one level are cut into documents at the same offsets.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from logitcask_schemas.cask.format.codec_u8 import SCALES
from logitcask_schemas.cask.format.manifest import MAX_VOCAB_SIZE, CaskManifest
from logitcask_schemas.cask.format.packed.rank_table import RankTable
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.position_columns import stored_columns

Level: TypeAlias = Literal["token", "position", "head", "tail"]
LEVELS: Final[tuple[Level, ...]] = ("token", "position", "head", "tail")

MANIFEST_NAME: Final = "cask.json"
INDEX_NAME: Final = "index.json"
LOCK_NAME: Final = "cask.lock"
SHARDS_NAME: Final = "shards"
QUARANTINE_NAME: Final = "quarantine"
ENTRY_SUFFIX: Final = ".json"
TEMP_PREFIX: Final = ".tmp-"

HIGH_SUFFIX: Final = "_high"
"""Ends the name of the plane with bits 16 to 23 of an id column."""
SMALL_VOCAB: Final = 1 << 16
"""Up to this size an id fits its low plane."""


@dataclass(frozen=True, slots=True)
class Column:
    """One stored column of a shard."""

    name: str
    dtype: np.dtype[Any]
    level: Level
    width: int | None = None
    """Values per unit of the level where that is a row, None for a single value."""

    @property
    def values_per_unit(self) -> int:
        """Values per token, position, entry or draw."""
        return 1 if self.width is None else self.width

    @property
    def bytes_per_unit(self) -> int:
        """Bytes per token, position, entry or draw."""
        return self.dtype.itemsize * self.values_per_unit


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """The columns of every shard of one cask, in the order in which they are stored and checksummed."""

    columns: tuple[Column, ...]
    seed: int = 0
    """`CaptureSpec.seed`, for codecs that round at random."""
    coded: frozenset[str] = frozenset()
    """Names of the columns that hold codes of `codec_u8` instead of values."""
    position_columns: tuple[str, ...] = ()
    """Names of the stored ones of `record.position_columns`."""
    head_holds_next: bool = True
    """Whether every head holds the next token; not of imported records."""
    vocab_size: int = MAX_VOCAB_SIZE
    """Every id is below it."""
    ranks: RankTable | None = None
    """With which packed shards write ids; None: ids are their own ranks."""

    @classmethod
    def of(cls, manifest: CaskManifest) -> "RecordLayout":
        """The layout of a cask's shards."""
        layout = cls.for_capture(manifest.capture, manifest.teacher.vocab_size)
        return replace(layout, ranks=manifest.rank_table)

    @classmethod
    def for_capture(cls, spec: CaptureSpec, vocab_size: int) -> "RecordLayout":
        """The layout that follows from capture spec and vocabulary size; it depends on nothing else."""
        wide = vocab_size > SMALL_VOCAB
        value = np.dtype({"f16": "<f2", "f32": "<f4", "u8": "<f2", "u8all": "<f2"}[spec.logprob_codec])
        in_bytes = {"f16": (), "f32": (), "u8": ("head_logprobs", "tail_logprobs"), "u8all": tuple(SCALES)}
        coded = frozenset(in_bytes[spec.logprob_codec])
        logprob = np.dtype(np.uint8) if "head_logprobs" in coded else value

        def ids(name: str, level: Level) -> list[Column]:
            low = Column(name, np.dtype("<u2"), level)
            return [low, Column(name + HIGH_SUFFIX, np.dtype(np.uint8), level)] if wide else [low]

        columns = [
            *ids("token_ids", "token"),
            Column("head_counts", np.dtype(np.uint8), "position"),
            *ids("head_ids", "head"),
            Column("head_logprobs", logprob, "head"),
            Column("tail_counts", np.dtype(np.uint8), "position"),
            *ids("tail_ids", "tail"),
        ]
        if spec.tail_logprobs and spec.mode != "topk":
            columns.append(Column("tail_logprobs", logprob, "tail"))
        stored = stored_columns(spec)
        columns += [
            Column(
                column.name,
                np.dtype(np.uint8) if column.name in coded else column.dtype or value,
                "position",
                column.width_of(spec),
            )
            for column in stored
        ]
        return cls(
            tuple(columns),
            spec.seed,
            coded.intersection(column.name for column in columns),
            tuple(column.name for column in stored),
            not spec.imported,
            vocab_size,
        )

    def has(self, name: str) -> bool:
        """Whether the shards hold a column of this name."""
        return any(column.name == name for column in self.columns)

    @property
    def bytes_per_unit(self) -> dict[Level, int]:
        """Bytes of all columns per token, position, head entry and tail draw."""
        units: dict[Level, int] = dict.fromkeys(LEVELS, 0)
        for column in self.columns:
            units[column.level] += column.bytes_per_unit
        return units

    @property
    def wide_ids(self) -> bool:
        """Whether ids lie in two planes."""
        return self.has("token_ids" + HIGH_SUFFIX)
