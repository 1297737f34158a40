"""What the documents of casks say of their answers, from the casks' entries alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from logitcask_schemas.cask import Cask


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
