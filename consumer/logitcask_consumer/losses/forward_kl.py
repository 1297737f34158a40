"""Forward KL on the unbiased sparse target: the default loss."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, Requires, in_range
from logitcask_consumer.losses.registry import register
from logitcask_consumer.losses.student_rows import Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget


@register
@dataclass(frozen=True, kw_only=True)
class ForwardKL(Loss):
    """KL(teacher || student), unbiased from head and systematic tail draws.

    Formula, per row with head H, exact tail mass r, n draws from the tail, s the student's mass outside H and the
    parameter lambda = `tail_weight`::

        -sum_H t_j log p_j - lambda (r / n) sum_draws log p_j - (1 - lambda) r log s

    With lambda = 1 it is the cross-entropy from t̂ to p: d / d z = p - t̂, E[t̂] = t, sum t̂ = 1; the value less the
    stored H(t) estimates KL(t || p) without bias. KL = KL(head and one tail bucket) + r KL(tail || tail'), and lambda
    weighs the second term: 0 is `ghost_kl`, above 1 stresses the tail's shape; the minimum stays at p = t.

    Estimator: unbiased, value and gradient, with lambda = 1 (systematic sampling; Anshumann et al., "Sparse Logit
    Sampling", arXiv 2503.16870, is the case of an empty head; Hinton et al., arXiv 1503.02531, the dense one). With
    another lambda, unbiased for the weighted sum above (up to a constant), whose value is not a KL divergence.
    """

    name: ClassVar[str] = "forward_kl"
    estimator: ClassVar[Estimator] = "unbiased"
    requires: ClassVar[Requires] = Requires(head=False, draws=True)
    tail_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the weight."""
        in_range(self, "tail_weight", 0.0, 100.0)

    @property
    def kl_value(self) -> bool:  # type: ignore[override]
        """Only the plain KL."""
        return self.tail_weight == 1.0

    @property
    def needs(self) -> Needs:
        """The mass s only with a weight."""
        return Needs(tail=self.tail_weight != 1.0)

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """See `Loss.per_row`."""
        del scale_R
        on_head_R = target.head_sum(target.head_weights_H * student.head_logprobs_H)
        on_draws_R = target.tail_sum(target.tail_weights_N * student.tail_logprobs_N)
        if self.tail_weight == 1.0:
            return -on_head_R - on_draws_R
        bucket_R = target.tail_mass_R * student.log_tail_R
        return -on_head_R - self.tail_weight * on_draws_R - (1.0 - self.tail_weight) * bucket_R
