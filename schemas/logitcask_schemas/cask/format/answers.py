"""Which tokens of a shard's documents are answers: the last column of a shard, where at least one document says so.

Stored are, document after document, the numbers start, stop, start, stop and so on. A document of which nobody knows
has none; one that is known to have no answer has the single empty range 0, 0. So the bytes that a document adds to its
checksum are the same whether it lies beside documents with answers or not.

Shape legend: D documents, R ranges of one, L tokens of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.format.manifest import ShardEntry
from logitcask_schemas.errors import CaskCorruptionError
from logitcask_schemas.record.rules import answers_are_valid

ANSWERS_NAME: Final = "answers"
"""Of the column."""
_NONE: Final = np.zeros(2, dtype=np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCounts:
    """Sums over documents."""

    documents: int = 0
    """Documents that say which of their tokens are answers, or that none is."""
    ranges: int = 0
    """Stored ranges, with an empty one for each document without an answer."""
    positions: int = 0
    """Positions that predict a token of an answer."""


def announced_answers(entry: ShardEntry) -> AnswerCounts:
    """What a shard's entry says of its answers."""
    return AnswerCounts(documents=entry.answer_documents, ranges=entry.answer_ranges, positions=entry.answer_positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The column as it is stored."""

    offsets: NDArray[np.int64]
    """[D + 1] into `values`."""
    values: NDArray[np.uint32]
    """Starts and stops in turn."""

    @classmethod
    def of_documents(cls, ranges_D: Sequence[NDArray[np.uint32] | None]) -> Self | None:
        """The column of documents with these ranges [R, 2]; None where nobody knows of any of them."""
        empty = _NONE[:0]
        return cls.joined(
            [empty if ranges is None else ranges.reshape(-1) if len(ranges) else _NONE for ranges in ranges_D]
        )

    @classmethod
    def joined(cls, parts_D: Sequence[NDArray[np.uint32]]) -> Self | None:
        """The column of documents with these stored values; None where there are none."""
        offsets = np.cumsum([0, *map(len, parts_D)], dtype=np.int64)
        return cls(offsets=offsets, values=np.concatenate(parts_D, dtype=np.uint32)) if offsets[-1] else None

    @classmethod
    def opened(cls, path: Path, offsets: NDArray[np.int64], values: NDArray[np.uint32], documents: int) -> Self:
        """The column of a file; CaskCorruptionError where the offsets do not cut the values into pairs of documents."""
        sound = len(offsets) == documents + 1 and offsets[0] == 0 and (offsets[1:] >= offsets[:-1]).all()
        if not sound or (offsets % 2).any() or offsets[-1] != len(values):
            raise CaskCorruptionError(
                f"{path}: offsets of column {ANSWERS_NAME} do not cut its {len(values)} values into pairs for "
                f"{documents} documents. Run `logitcask cask verify`."
            )
        return cls(offsets=offsets, values=values)

    def stored(self, row: int) -> NDArray[np.uint32]:
        """The values of one document."""
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def ranges(self, row: int) -> NDArray[np.uint32] | None:
        """The ranges of one document as `DocumentRecords.answer_ranges_R2` has them; None where nobody knows."""
        ranges_R2 = self.stored(row).reshape(-1, 2)
        if not len(ranges_R2):
            return None
        return ranges_R2[:0] if np.array_equal(ranges_R2[0], _NONE) and len(ranges_R2) == 1 else ranges_R2

    def counts(self) -> AnswerCounts:
        """Sums over the documents."""
        pairs = self.values.reshape(-1, 2).astype(np.int64)
        return AnswerCounts(
            documents=int(np.count_nonzero(np.diff(self.offsets))),
            ranges=len(pairs),
            # The first token of a document is predicted by no position.
            positions=int((np.maximum(pairs[:, 1], 1) - np.maximum(pairs[:, 0], 1)).sum()),
        )

    def are_valid(self, lengths_D: NDArray[np.int64]) -> bool:
        """Whether all ranges ascend, hold a token, and end within their document of L tokens; 0, 0 stands alone."""
        sizes_D = np.diff(self.offsets)
        pairs = self.values.reshape(-1, 2)
        document = np.repeat(np.arange(len(sizes_D)), sizes_D // 2)
        alone = (sizes_D[document] == 2) & (pairs == 0).all(axis=1)
        return answers_are_valid(pairs[~alone], document[~alone], lengths_D)
