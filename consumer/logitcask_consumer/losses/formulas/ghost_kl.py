"""Forward KL with one ghost bucket for the tail: a lower bound without sampling noise."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, register
from logitcask_consumer.losses.student_rows import Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget


@register
@dataclass(frozen=True, kw_only=True)
class GhostKL(Loss):
    """KL between (head, total tail mass) of teacher and student: a lower bound of the full KL.

    Formula, per row, with s the student's mass outside the head::

        -sum_H t_j log p_j - r log s        d / d z_j = p_j - t_j on H,   p_j (1 - r / s) elsewhere

    The tail's total mass is supervised, its shape is not: the gap to the full KL is r · KL(t_tail || p_tail).
    Coarsening a pair of distributions never raises a divergence, hence the bound. Equal to the dense KL when the head
    holds the whole vocabulary. Ghost tokens: arXiv 2503.16870; the `symmetric_uniform` mode of DistillKit is the same.

    Estimator: bound (lower, deterministic). Draws are ignored, the tail mass is used.
    """

    name: ClassVar[str] = "ghost_kl"
    estimator: ClassVar[Estimator] = "bound"
    needs: ClassVar[Needs] = Needs(tail=True)

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The cross-entropy over head and tail bucket, per row, [R]."""
        del scale_R
        on_head_R = target.head_sum(target.head_weights_H * student.head_logprobs_H)
        return -on_head_R - target.tail_mass_R * student.log_tail_R
