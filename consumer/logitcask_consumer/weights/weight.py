"""What a weight of positions is, and what those that need no student read.

Shape legend: P positions to be trained, W windows of documents, L tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.notation import read_named, write_named
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import OptionError
from logitcask_schemas.record.extent import IdArray
from logitcask_schemas.record.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswers:
    """Sums over all documents of a run."""

    documents: int
    say: int
    """Documents that say which of their tokens are answers, or that none is."""
    positions: int
    """Positions that predict a token of an answer of these."""

    @classmethod
    def of(cls, casks: Sequence[Cask]) -> Self:
        """Reads no shard."""
        entries = [entry for cask in casks for entry in cask.entries]
        return cls(
            documents=sum(entry.documents for entry in entries),
            say=sum(entry.answer_documents for entry in entries),
            positions=sum(entry.answer_positions for entry in entries),
        )

    @property
    def silent(self) -> int:
        """Documents that do not say."""
        return self.documents - self.say

    @property
    def silence(self) -> str:
        """How many do not say, and which they may be, for messages."""
        return (
            f"{self.silent:,} of {self.documents:,} documents do not say which of their tokens are answers (they were "
            "captured from text or token ids, or before casks kept that)"
        )


class WeightParameterError(OptionError, ValueError):
    """A weight was given a parameter that it does not have or cannot use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """P positions of W windows, window after window, on the host."""

    records: Records
    """Of the P positions."""
    token_ids_L: IdArray
    """Per window, the tokens of its document from the document's first to the last one that the window predicts."""
    token_offsets_W1: NDArray[np.int64]
    """[W + 1] into `token_ids_L`."""
    counts_W: NDArray[np.int64]
    """Positions of each window."""
    document_ids_W: NDArray[np.uint8]
    """[W, 32], identity of each window's document."""
    vocab_size: int
    """V, of the teacher's logits."""
    positions_P: NDArray[np.int64] | None = None
    """Number of each position within its document; None where they are those that predict the windows' last tokens."""
    answers_W: Sequence[NDArray[np.uint32] | None] | None = None
    """Of each window's document the ranges [R, 2] of tokens that are answers, None where it does not say; None where no
    document says."""

    @property
    def targets_P(self) -> NDArray[np.int64]:
        """Index into `token_ids_L` of the next token of each position."""
        if self.positions_P is not None:
            return np.repeat(self.token_offsets_W1[:-1], self.counts_W) + self.positions_P + 1
        ends_W = self.token_offsets_W1[1:]
        before_W = np.cumsum(self.counts_W) - self.counts_W
        shift_P: NDArray[np.int64] = np.repeat(ends_W - self.counts_W - before_W, self.counts_W)
        return np.arange(len(shift_P)) + shift_P

    @property
    def next_ids_P(self) -> IdArray:
        """Realised next token of each position."""
        return self.token_ids_L[self.targets_P]


@dataclass(frozen=True, kw_only=True)
class Weight(ABC):
    """A weight with its parameters (the dataclass fields)."""

    name: ClassVar[str]
    summary: ClassVar[str]
    graded: ClassVar[bool] = False
    """Whether it takes other values than 0 and 1."""

    def bind(self, tokenizer: Any, answers: StoredAnswers | None = None) -> Self:
        """The same weight, ready for use with the student's tokenizer; nothing to do for most.

        Args:
            tokenizer: the student's.
            answers: what the documents say of their answers; None where the weight must work whatever they say.

        Raises:
            WeightParameterError: a parameter does not fit the tokenizer, or names a file that cannot be used.
        """
        del tokenizer, answers
        return self

    def content(self) -> str | None:
        """Digest of what the weight reads besides its parameters, for the binding of a run; None for nothing."""
        return None

    @property
    def spec(self) -> str:
        """The weight as `get_weight` reads it, without parameters that have their defaults."""
        return write_named(self.name, self)


@dataclass(frozen=True, kw_only=True)
class RecordWeight(Weight):
    """A weight that follows from the record and the tokens of a position."""

    reads_entropy: ClassVar[bool] = False
    """Whether it follows from the teacher's entropy, of which some records (`entropy_is_bound`) have a lower bound."""

    @abstractmethod
    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """The weight of each position, [P], at least 0; or booleans for 0 and 1."""

    def notes(self, answers: StoredAnswers) -> list[str]:
        """What people should know of this weight with these documents, a sentence each."""
        del answers
        return []

    def never(self, answers: StoredAnswers) -> bool:
        """Whether what documents say of their answers alone tells that it is 0 at every position."""
        del answers
        return False

    def why_nothing(self, answers: StoredAnswers) -> str:
        """Why it is 0 at every position of these documents, once that is known."""
        del answers
        return f"{self.spec} is 0 everywhere"


def in_range(weight: Weight, name: str, low: float, high: float) -> None:
    """Refuse a parameter outside [low, high].

    Raises:
        WeightParameterError: it is outside.
    """
    value = getattr(weight, name)
    if not low <= value <= high:
        raise WeightParameterError(
            f"weight {weight.name!r}: {name} must lie between {low:g} and {high:g}, got {value:g}"
        )


WEIGHTS: dict[str, type[Weight]] = {}
"""Every registered class by its name."""

W = TypeVar("W", bound=type[Weight])


class UnknownWeightError(OptionError, KeyError):
    """A weight was named that is not registered."""

    def __str__(self) -> str:
        return str(self.args[0])


def register(weight: W) -> W:
    """Register a class of weights under its `name`; the first line of its docstring is its summary."""
    assert weight.name not in WEIGHTS, f"weight {weight.name} is registered twice"
    assert weight.__doc__, f"weight {weight.name} has no docstring"
    weight.summary = weight.__doc__.splitlines()[0]
    WEIGHTS[weight.name] = weight
    return weight


def get_weight(spec: str) -> Weight:
    r"""A weight by its name and parameters: `entropy_top:keep=0.2`, `completion_only:after="Answer:\n"`.

    Text between double quotes is read as in JSON, so `\n` is a line break and commas are part of it.

    Raises:
        UnknownWeightError: no such weight; the message lists those there are.
        WeightParameterError: it has no such parameter, or the value is not one it can have.
    """
    defaults = {name: weight() for name, weight in WEIGHTS.items()}
    return read_named(spec, defaults, what="weight", unknown=UnknownWeightError, wrong=WeightParameterError)
