"""Concrete score distillation on the head: differences of logits are matched, whatever their common shift."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, register
from logitcask_consumer.losses.student_rows import StudentRows
from logitcask_consumer.losses.target import SparseTarget


@register
@dataclass(frozen=True, kw_only=True)
class ConcreteScore(Loss):
    """Squared differences of logit differences over pairs of head tokens, weighted by the student.

    With d_j = log p_j - log t_j (logits up to a shift that cancels) and weights p without gradient::

        1/2 sum_{i, j in H} p_i p_j (d_i - d_j)^2 = (sum_H p) (sum_H p d^2) - (sum_H p d)^2

    arXiv 2509.25837, with weights (S, S). The whole sum has one term per pair of the vocabulary, none
    negative: on the head it is a lower bound, exact for a head of the whole vocabulary.

    Estimator: bound (lower). Units: nats squared.
    """

    name: ClassVar[str] = "csd"
    estimator: ClassVar[Estimator] = "bound"

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The weighted squared differences of the head's pairs, per row, [R]."""
        del scale_R
        p_H, d_H = student.head_logprobs_H.detach().exp(), student.head_logprobs_H - target.head_logprobs_H
        mass_R, mean_R = target.head_sum(p_H), target.head_sum(p_H * d_H)
        # About the mean: the difference of the two sums as they stand would lose the digits of a good fit.
        centred_H = d_H - (mean_R / mass_R)[target.head_rows_H]
        return mass_R * target.head_sum(p_H * centred_H.square())
