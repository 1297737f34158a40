"""The biased baseline: a head renormalised to mass 1, as most caches of teacher logits are used today."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, register
from logitcask_consumer.losses.student_rows import StudentRows
from logitcask_consumer.losses.target import SparseTarget


@register
@dataclass(frozen=True, kw_only=True)
class TopKRenorm(Loss):
    """Renormalised head only. Biased: a baseline to compare with, never a default.

    Formula, per row: -sum_H (t_j / sum_H t) log p_j, gradient p - t / sum_H t on H and p elsewhere. Its optimum
    puts t_j / (1 - r) on the head and nothing on the tail, whatever the teacher's tail (arXiv 2503.16870).

    Estimator: biased. Neither an estimate nor a bound of the KL divergence.
    """

    name: ClassVar[str] = "topk_renorm"
    estimator: ClassVar[Estimator] = "biased"

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """Cross-entropy with the renormalised head, per row, [R]."""
        del scale_R
        mass_R = target.head_sum(target.head_weights_H)
        return -target.head_sum(target.head_weights_H * student.head_logprobs_H) / mass_R
