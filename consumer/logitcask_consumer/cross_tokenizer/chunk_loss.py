"""What a chunk loss is: a formula over a few values of the student at aligned chunks and pairs.

Shape legend: R rows of a span, C chunks, P pairs, K most likely tokens of a pair, V the student's vocabulary.

The sibling of `losses.loss` for students with a tokenizer of their own. Its formulas sum over the tokens of a chunk,
and never compare token ids of the two sides.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcask_consumer.cross_tokenizer.target import ChunkTarget
from logitcask_consumer.losses.loss import Formula
from logitcask_schemas.record.capture_spec import CaptureSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpan:
    """What formulas read of the student; log-probabilities in nats, differentiable."""

    next_logprobs_R: Tensor
    """Of the realised next token."""
    top_logprobs_PK: Tensor
    """The largest of each pair's row, in descending order; K is 0 where no formula reads them."""
    closing_logmass_C: Tensor
    """Log of the mass on tokens that begin a new word, at the row after each chunk; 0 where the target's `closes_C` is
    false or no formula reads it."""


@dataclass(frozen=True, kw_only=True)
class ChunkLoss(Formula):
    """A loss on aligned chunks. Values are in nats, one per chunk, pair or row."""

    reads_top: ClassVar[bool] = False
    """Whether the formula reads `top_logprobs_PK`."""

    @property
    def reads_closing(self) -> bool:
        """Whether the formula reads `closing_logmass_C`."""
        return False

    @property
    def threshold(self) -> float:
        """Chunks are joined until the teacher's mass on the begin of a new word exceeds this; negative: never."""
        return -1.0

    @abstractmethod
    def values(self, student: StudentSpan, target: ChunkTarget) -> Tensor:
        """The loss of each chunk, pair or row, differentiable in the values of `student`; the sum of it counts."""

    def missing(self, capture: CaptureSpec) -> list[str]:
        """What records of this capture spec lack for the loss, each with the capture option that provides it."""
        del capture
        return []
