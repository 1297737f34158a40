"""Cross-entropy with the student's own tokens: no teacher, the control and the anchor of a mix."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcask_consumer.cross_tokenizer.loss import ChunkLoss, StudentSpan
from logitcask_consumer.cross_tokenizer.target import ChunkTarget
from logitcask_consumer.losses.loss import Estimator


@dataclass(frozen=True, kw_only=True)
class NextToken(ChunkLoss):
    """-log p of the student's next token, at every counted row. Estimator: exact."""

    name: ClassVar[str] = "cross_entropy"
    estimator: ClassVar[Estimator] = "exact"

    def values(self, student: StudentSpan, target: ChunkTarget) -> Tensor:
        """See `ChunkLoss.values`; [R], 0 where a row does not count."""
        return -student.next_logprobs_R * target.counted_R
