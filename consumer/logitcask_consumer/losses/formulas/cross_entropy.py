"""Cross-entropy with the realised tokens: the control that uses no teacher."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, Requires, register
from logitcask_consumer.losses.student_rows import StudentRows
from logitcask_consumer.losses.target import SparseTarget


@register
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy with the realised next token: plain language modelling, the control of every comparison.

    Formula, per row: -log p_y, gradient p - onehot(y). Estimator: exact. The target serves for its `next_ids_R` only.
    """

    name: ClassVar[str] = "cross_entropy"
    estimator: ClassVar[Estimator] = "exact"
    requires: ClassVar[Requires] = Requires(head=False)

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """-log p of the realised next token, per row, [R]."""
        del target, scale_R
        return -student.next_logprobs_R
