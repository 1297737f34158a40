"""Forward KL on the unbiased sparse target: the default loss."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, LossParameterError, Requires, in_range, register
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

    With a temperature T other than 1 both sides are softened, t_T = t^(1/T) / Z_T and p_T = softmax(z / T), and the
    loss is T^2 times the cross-entropy between them (Hinton et al.), so that gradients keep their size. The head is
    exact by the stored log Z_T; a draw counts (r / n) t^(1/T - 1) / Z_T: unbiased, and noisier the higher T is.
    """

    name: ClassVar[str] = "forward_kl"
    estimator: ClassVar[Estimator] = "unbiased"
    tail_weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check both."""
        in_range(self, "tail_weight", 0.0, 100.0)
        in_range(self, "temperature", 0.0, 100.0, open_ends=True)
        if self.tail_weight != 1.0 and self.temperature != 1.0:
            raise LossParameterError("loss 'forward_kl' takes a tail_weight or a temperature, not both")

    @property
    def kl_value(self) -> bool:  # type: ignore[override]
        """Only the plain KL."""
        return self.tail_weight == 1.0 and self.temperature == 1.0

    @property
    def requires(self) -> Requires:
        """Draws; with a temperature also their log-probabilities and log Z."""
        if self.temperature == 1.0:
            return Requires(head=False, draws=True)
        return Requires(head=False, draws=True, tail_logprobs=True, temperature=self.temperature)

    @property
    def needs(self) -> Needs:
        """The mass s only with a weight."""
        return Needs(tail=self.tail_weight != 1.0)

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The cross-entropy of the student to the teacher, from head and draws, per row, [R]."""
        del scale_R
        if self.temperature != 1.0:
            return self._softened(student, target)
        on_head_R = target.head_sum(target.head_weights_H * student.head_logprobs_H)
        on_draws_R = target.tail_sum(target.tail_weights_N * student.tail_logprobs_N)
        if self.tail_weight == 1.0:
            return -on_head_R - on_draws_R
        bucket_R = target.tail_mass_R * student.log_tail_R
        return -on_head_R - self.tail_weight * on_draws_R - (1.0 - self.tail_weight) * bucket_R

    def _softened(self, student: StudentRows, target: SparseTarget) -> Tensor:
        log_t_N, log_z_R = target.tail_logprobs_N, target.log_z_R
        assert log_t_N is not None, "`missing` asks for them"
        assert log_z_R is not None, "`missing` asks for it"
        sharpness = 1.0 / self.temperature
        soft_H = torch.exp(sharpness * target.head_logprobs_H - log_z_R[target.head_rows_H])
        each_N = torch.exp((sharpness - 1.0) * log_t_N - log_z_R[target.tail_rows_N])
        on_head_R = target.head_sum(soft_H * student.head_logprobs_H)
        on_draws_R = target.tail_sum(target.tail_weights_N * each_N * student.tail_logprobs_N)
        return self.temperature**2 * (-on_head_R - on_draws_R)
