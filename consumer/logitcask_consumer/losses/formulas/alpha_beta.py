"""Alpha-beta divergence of ABKD: hardness and confidence weighted apart, forward and reverse KL at its corners."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, Requires, in_range, register
from logitcask_consumer.losses.student_rows import Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget


@register
@dataclass(frozen=True, kw_only=True)
class AlphaBeta(Loss):
    """Alpha-beta divergence, from forward KL (1, 0) to reverse KL (0, 1) in the limit.

    With c = a + b::

        -1 / (a b) sum_j [t_j^a p_j^b - (a / c) t_j^c - (b / c) p_j^c]

    The sum over p^c is exact (a reduction over the vocabulary), the sums over the tail with t in them come from the
    draws: sum_tail t^a p^b is estimated by (r / n) sum_draws t^(a-1) p^b. Wang et al., ABKD, arXiv 2505.04560
    (0.2, 0.7). Coarsening bounds it for a + b = 1 only, so there is no ghost variant.

    Estimator: unbiased, value and gradient. Units: nats for a + b = 1.
    """

    name: ClassVar[str] = "alpha_beta"
    estimator: ClassVar[Estimator] = "unbiased"
    requires: ClassVar[Requires] = Requires(head=False, draws=True, tail_logprobs=True)
    alpha: float = 0.2
    beta: float = 0.7

    def __post_init__(self) -> None:
        """Check both exponents."""
        in_range(self, "alpha", 0.0, 4.0, open_ends=True)
        in_range(self, "beta", 0.0, 4.0, open_ends=True)

    @property
    def needs(self) -> Needs:
        """The sum over p^c."""
        return Needs(powers=frozenset({self.alpha + self.beta}))

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The divergence of each row, [R]."""
        del scale_R
        assert target.tail_logprobs_N is not None, "`missing` asks for them"
        a, b, c = self.alpha, self.beta, self.alpha + self.beta
        log_t_H, log_t_N = target.head_logprobs_H, target.tail_logprobs_N
        product_H = torch.exp(a * log_t_H + b * student.head_logprobs_H)
        product_N = torch.exp((a - 1.0) * log_t_N + b * student.tail_logprobs_N)
        of_t_H, of_t_N = torch.exp(c * log_t_H), torch.exp((c - 1.0) * log_t_N)
        on_head_R = target.head_sum(product_H - (a / c) * of_t_H)
        on_tail_R = target.tail_sum(target.tail_weights_N * (product_N - (a / c) * of_t_N))
        return (on_head_R + on_tail_R - (b / c) * student.log_power_sum_R(c).exp()) / (-a * b)
