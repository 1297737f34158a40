"""What documents of a shard say beside their records: lists of numbers, the last columns of a shard.

Three of them, each present where at least one document has something to say:

* `answers`: which tokens are answers, as start, stop, start, stop and so on. A document of which nobody knows has none;
  one that is known to have no answer has the single empty range 0, 0.
* `recorded`: which positions have records, as ranges too; none where all have.
* `context`: the number of tokens that the teacher read before the document, and their digest as eight numbers; none
  where there were none.

A document that says nothing has no numbers, so the bytes that it adds to its checksum are the same whatever stands
beside it.

Shape legend: D documents, R ranges of one, L tokens of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import CaskCorruptionError
from logitcask_schemas.record.extent import WHOLE, Context, Extent, recorded_are_valid
from logitcask_schemas.record.rules import ranges_are_valid

if TYPE_CHECKING:
    from logitcask_schemas.record.records import DocumentRecords

_NO_ANSWER: Final = np.zeros(2, dtype=np.uint32)
_NOTHING: Final = np.empty(0, dtype=np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLists:
    """A column of lists as it is stored."""

    name: ClassVar[str]
    """Of the column."""
    group: ClassVar[int]
    """How many numbers belong together."""

    offsets: NDArray[np.int64]
    """[D + 1] into `values`."""
    values: NDArray[np.uint32]

    @classmethod
    def joined(cls, parts_D: Sequence[NDArray[np.uint32]]) -> Self | None:
        """The column of documents with these numbers; None where there are none."""
        offsets = np.cumsum([0, *map(len, parts_D)], dtype=np.int64)
        return cls(offsets=offsets, values=np.concatenate(parts_D, dtype=np.uint32)) if offsets[-1] else None

    @classmethod
    def opened(cls, path: Path, offsets: NDArray[np.int64], values: NDArray[np.uint32], documents: int) -> Self:
        """The column of a file; CaskCorruptionError where the offsets do not cut the values into groups."""
        sound = len(offsets) == documents + 1 and offsets[0] == 0 and (offsets[1:] >= offsets[:-1]).all()
        if not sound or (offsets % cls.group).any() or offsets[-1] != len(values):
            raise CaskCorruptionError(
                f"{path}: offsets of column {cls.name} do not cut its {len(values)} values into groups of {cls.group} "
                f"for {documents} documents. Run `logitcask cask verify`."
            )
        return cls(offsets=offsets, values=values)

    def stored(self, row: int) -> NDArray[np.uint32]:
        """The numbers of one document."""
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    @property
    def num_documents(self) -> int:
        """Documents that say something."""
        return int(np.count_nonzero(np.diff(self.offsets)))

    @property
    def num_groups(self) -> int:
        """Of all documents."""
        return len(self.values) // self.group

    @property
    def document_G(self) -> NDArray[np.int64]:
        """The document of each group."""
        sizes_D = np.diff(self.offsets) // self.group
        return np.repeat(np.arange(len(sizes_D)), sizes_D)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers(DocumentLists):
    """Which tokens are answers."""

    name = "answers"
    group = 2

    @classmethod
    def of_documents(cls, ranges_D: Sequence[NDArray[np.uint32] | None]) -> Self | None:
        """The column of documents with these ranges [R, 2]; None where nobody knows of any of them."""
        return cls.joined(
            [_NOTHING if ranges is None else ranges.reshape(-1) if len(ranges) else _NO_ANSWER for ranges in ranges_D]
        )

    def ranges(self, row: int) -> NDArray[np.uint32] | None:
        """The ranges of one document as `DocumentRecords.answer_ranges_R2` has them; None where nobody knows."""
        ranges_R2 = self.stored(row).reshape(-1, 2)
        if not len(ranges_R2):
            return None
        return ranges_R2[:0] if np.array_equal(ranges_R2[0], _NO_ANSWER) and len(ranges_R2) == 1 else ranges_R2

    @property
    def num_positions(self) -> int:
        """Positions, with records or not, that predict a token of an answer."""
        pairs = self.values.reshape(-1, 2).astype(np.int64)
        # The first token of a document is predicted by no position.
        return int((np.maximum(pairs[:, 1], 1) - np.maximum(pairs[:, 0], 1)).sum())

    def are_valid(self, lengths_D: NDArray[np.int64]) -> bool:
        """Whether all ranges ascend, hold a token, and end within their document of L tokens; 0, 0 stands alone."""
        sizes_D = np.diff(self.offsets)
        pairs, document = self.values.reshape(-1, 2), self.document_G
        alone = (sizes_D[document] == 2) & (pairs == 0).all(axis=1)
        return ranges_are_valid(pairs[~alone], document[~alone], lengths_D)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRanges(DocumentLists):
    """Which positions have records."""

    name = "recorded"
    group = 2

    def are_valid(self, lengths_D: NDArray[np.int64]) -> bool:
        """Whether all ranges are as `Extent` has them."""
        return recorded_are_valid(self.values.reshape(-1, 2), self.document_G, lengths_D)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts(DocumentLists):
    """What the teacher read before documents."""

    name = "context"
    group = 9

    def are_valid(self) -> bool:
        """Whether no document has two contexts, and none is empty."""
        return bool((np.diff(self.offsets) <= self.group).all() and (self.values[:: self.group] > 0).all())


LISTS: Final = (Answers, RecordedRanges, Contexts)
"""In the order of the shard's columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLists:
    """The lists of a shard; those that are None it does not have."""

    answers: Answers | None = None
    recorded: RecordedRanges | None = None
    contexts: Contexts | None = None

    @classmethod
    def of(cls, columns: Sequence[DocumentLists | None]) -> Self:
        """Of some columns of lists, each of its own kind."""
        return cls(
            answers=next((column for column in columns if isinstance(column, Answers)), None),
            recorded=next((column for column in columns if isinstance(column, RecordedRanges)), None),
            contexts=next((column for column in columns if isinstance(column, Contexts)), None),
        )

    @classmethod
    def of_documents(cls, documents: Sequence["DocumentRecords"]) -> Self:
        """What these documents say."""
        extents = [document.extent for document in documents]
        return cls(
            answers=Answers.of_documents([document.answer_ranges_R2 for document in documents]),
            recorded=RecordedRanges.joined([_recorded_numbers(extent) for extent in extents]),
            contexts=Contexts.joined([_context_numbers(extent) for extent in extents]),
        )

    @classmethod
    def joined(cls, rows: Sequence[tuple[Self, int]]) -> Self:
        """Of documents of several shards: the lists that each lies in, and its number there."""
        return cls.of([kind.joined([lists.stored(kind, row) for lists, row in rows]) for kind in LISTS])

    def __iter__(self) -> Iterator[DocumentLists]:
        return iter([column for column in (self.answers, self.recorded, self.contexts) if column is not None])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns there are."""
        return tuple(column.name for column in self)

    def stored(self, kind: type[DocumentLists], row: int) -> NDArray[np.uint32]:
        """The numbers that one document has in the column of a kind."""
        column = next((column for column in self if type(column) is kind), None)
        return _NOTHING if column is None else column.stored(row)

    def answer_ranges(self, row: int) -> NDArray[np.uint32] | None:
        """Which tokens of a document are answers; None where nobody knows."""
        return None if self.answers is None else self.answers.ranges(row)

    def extent(self, row: int) -> Extent:
        """What of a document is recorded."""
        if self.recorded is None and self.contexts is None:
            return WHOLE
        numbers, context = self.stored(RecordedRanges, row), self.stored(Contexts, row)
        return Extent(
            recorded_R2=numbers.reshape(-1, 2) if len(numbers) else None,
            context=Context(length=int(context[0]), digest=context[1:].tobytes()) if len(context) else None,
        )

    def counts(self) -> dict[str, int]:
        """What the shard's entry says of them, by member."""
        answers, recorded, contexts = self.answers, self.recorded, self.contexts
        return {
            "answer_documents": 0 if answers is None else answers.num_documents,
            "answer_ranges": 0 if answers is None else answers.num_groups,
            "answer_positions": 0 if answers is None else answers.num_positions,
            "recorded_documents": 0 if recorded is None else recorded.num_documents,
            "recorded_ranges": 0 if recorded is None else recorded.num_groups,
            "context_documents": 0 if contexts is None else contexts.num_documents,
        }

    def are_valid(self, lengths_D: NDArray[np.int64]) -> bool:
        """Whether all obey the format, for documents of so many tokens."""
        return (
            (self.answers is None or self.answers.are_valid(lengths_D))
            and (self.recorded is None or self.recorded.are_valid(lengths_D))
            and (self.contexts is None or self.contexts.are_valid())
        )

    def recorded_positions(self, lengths_D: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many positions of each document have records, [D]."""
        positions_D = lengths_D - 1
        if self.recorded is None:
            return positions_D
        pairs, document_G = self.recorded.values.reshape(-1, 2).astype(np.int64), self.recorded.document_G
        counts_D = np.bincount(document_G, weights=pairs[:, 1] - pairs[:, 0], minlength=len(lengths_D))
        return np.where(np.diff(self.recorded.offsets) > 0, counts_D.astype(np.int64), positions_D)


NO_LISTS: Final = ShardLists()


def list_sizes(counts: dict[str, int]) -> dict[str, int]:
    """How many numbers each list of a shard holds, by what its entry says; those without any are left out."""
    sizes = {
        Answers.name: Answers.group * counts["answer_ranges"],
        RecordedRanges.name: RecordedRanges.group * counts["recorded_ranges"],
        Contexts.name: Contexts.group * counts["context_documents"],
    }
    return {name: size for name, size in sizes.items() if size}


def _recorded_numbers(extent: Extent) -> NDArray[np.uint32]:
    return _NOTHING if extent.recorded_R2 is None else extent.recorded_R2.reshape(-1)


def _context_numbers(extent: Extent) -> NDArray[np.uint32]:
    if extent.context is None:
        return _NOTHING
    return np.concatenate([[extent.context.length], np.frombuffer(extent.context.digest, dtype="<u4")]).astype(
        np.uint32
    )
