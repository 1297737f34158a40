"""What a run with two tokenizers minimises: a weighted mix of chunk losses, written as any mix."""

from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from logitcask_consumer.cross_tokenizer.alm import Alm
from logitcask_consumer.cross_tokenizer.chunk_head import ChunkTerms
from logitcask_consumer.cross_tokenizer.loss import ChunkLoss
from logitcask_consumer.cross_tokenizer.next_token import NextToken
from logitcask_consumer.cross_tokenizer.uld import Uld
from logitcask_consumer.losses.mix import Mix, split_mix
from logitcask_consumer.losses.registry import LossMismatchError
from logitcask_consumer.losses.spec import read_loss
from logitcask_schemas.capture_spec import CaptureSpec

CHUNK_LOSSES: Final[dict[str, ChunkLoss]] = {loss.name: loss for loss in (Alm(), NextToken(), Uld())}
_OWN: Final = CHUNK_LOSSES.keys() - {NextToken.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkObjective(Mix[ChunkLoss]):
    """A mix of chunk losses."""

    @staticmethod
    def names_one(text: str) -> bool:
        """Whether a mix holds a loss that needs aligned chunks."""
        return any(spec.partition(":")[0] in _OWN for _, spec in split_mix(text))

    @classmethod
    def parse(cls, text: str) -> "ChunkObjective":
        """Read a mix: "alm", "0.7*alm:temperature=50 + 0.3*cross_entropy"; see `Mix.read`.

        Raises:
            UnknownLossError, LossParameterError: what is not understood, or compares token ids.
        """
        return cls.read(text, _loss, attrgetter("name"))

    def with_cross_entropy(self, share: float) -> "ChunkObjective":
        """The mix at (1 - share) of its weight, with `share` of the cross-entropy with the student's tokens.

        Raises:
            LossParameterError: it has one already.
        """
        return self.shared_with(share, NextToken())

    def terms(self, progress: float) -> ChunkTerms:
        """The losses with their weights at a part of the run done, from 0 to 1."""
        return [(weight.at(progress), loss) for weight, loss in zip(self.weights, self.losses, strict=True)]

    def require(self, capture: CaptureSpec) -> None:
        """Refuse records that a loss of the mix cannot work with.

        Raises:
            LossMismatchError: says what they lack.
        """
        for loss in self.losses:
            if missing := loss.missing(capture):
                raise LossMismatchError(
                    f"loss {loss.spec!r} needs {' and '.join(missing)}; this cask was captured with mode "
                    f"{capture.mode!r}"
                )

    @property
    def threshold(self) -> float:
        """Up to which mass on new words chunks are joined; negative: never."""
        return max(loss.threshold for loss in self.losses)

    @property
    def reads_top(self) -> bool:
        """Whether a loss reads the teacher's largest probabilities."""
        return any(loss.reads_top for loss in self.losses)


def _loss(text: str) -> ChunkLoss:
    return read_loss(text, CHUNK_LOSSES, kind=" for aligned chunks, as a mix with alm or uld needs it")
