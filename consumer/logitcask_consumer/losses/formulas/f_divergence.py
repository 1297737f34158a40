"""f-divergences from sparse records: the sum over the head is exact, the tail is sampled or one bucket.

Shape legend: R rows, H head entries, N tail draws.

D(t || p) = sum_j t_j f(p_j / t_j). With rho = p / t, draws j from the tail that each stand for mass r / n, and
c = lim f(rho) / rho at infinity (0 where a loss has no such variate)::

    tail=draws   sum_tail = c · s + (r / n) sum_draws [f(rho_j) - c rho_j]
    tail=ghost   sum_tail = r f(s / r)

The first is unbiased whatever c, since E[(r / n) sum_draws rho_j] = s is known exactly; the variate takes out the term
that grows with rho, so that what is left is bounded or grows like a logarithm. The second is a lower bound of every
f-divergence (data processing inequality), with equality when the shapes of both tails agree.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, Requires, Tail
from logitcask_consumer.losses.student_rows import Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget


@dataclass(frozen=True, kw_only=True)
class FDivergence(Loss):
    """A divergence given by its f; subclasses state f and c."""

    tail: Tail = "draws"

    @abstractmethod
    def times_t(self, log_t_E: Tensor, log_p_E: Tensor) -> Tensor:
        """The value t · f(p / t) of each entry, from the logarithms; also of a bucket, with its masses."""

    @property
    def slope(self) -> float:
        """c, the slope of f at infinity; 0 where it is infinite or no variate is wanted."""
        return 0.0

    @property
    def estimator(self) -> Estimator:
        """Unbiased by the draws, a bound by the bucket."""
        return "unbiased" if self.tail == "draws" else "bound"

    @property
    def needs(self) -> Needs:
        """Mass s, for the bucket or the control variate."""
        return Needs(tail=self.tail == "ghost" or self.slope != 0.0)

    @property
    def requires(self) -> Requires:
        """Log-probabilities of the draws, or a head."""
        draws = self.tail == "draws"
        return Requires(head=not draws, draws=draws, tail_logprobs=draws)

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The divergence of each row, [R]."""
        del scale_R
        on_head_R = target.head_sum(self.times_t(target.head_logprobs_H, student.head_logprobs_H))
        if self.tail == "draws":
            return on_head_R + self.sampled_tail(student, target)
        floor = math.log(torch.finfo(target.tail_mass_R.dtype).tiny)
        log_r_R, log_s_R = target.log_tail_mass_R.clamp(min=floor), student.log_tail_R.clamp(min=floor)
        return on_head_R + self.times_t(log_r_R, log_s_R)

    def sampled_tail(self, student: StudentRows, target: SparseTarget) -> Tensor:
        """The unbiased estimate of the sum over the tail, [R]."""
        assert target.tail_logprobs_N is not None, "`missing` asks for them"
        log_t_N, log_p_N = target.tail_logprobs_N, student.tail_logprobs_N
        # t f(rho) over t: the entry's weight is r / n, not t.
        value_N = self.times_t(log_t_N, log_p_N) / log_t_N.exp()
        if self.slope == 0.0:
            return target.tail_sum(target.tail_weights_N * value_N)
        value_N = value_N - self.slope * (log_p_N - log_t_N).exp()
        drawn_R = target.tail_sum(target.tail_weights_N * value_N)
        return self.slope * student.log_tail_R.exp() + drawn_R
