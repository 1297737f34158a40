"""TAID: a target that starts near the student and moves to the teacher while the run goes on.

Shape legend: R rows, H head entries, N entries of the rest: tail draws, or one bucket per row.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, LossParameterError, Requires, Tail, in_range, register
from logitcask_consumer.losses.student_rows import Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget


@register
@dataclass(frozen=True, kw_only=True)
class Taid(Loss):
    """KL(q || p) with q = p^(1-l) t^l / Z, the student held fixed in q, and l from `start` to `end` over the run.

    q is the softmax of the student's and the teacher's logits interpolated; the gradient is p - q. Z = sum p^(1-l) t^l
    is exact on the head; with rho = p / t and draws that each stand for mass r / n::

        tail=draws   Z = sum_H p^(1-l) t^l + (r / n) sum_draws rho^(1-l),   q of a draw = (r / n) rho^(1-l) / Z
        tail=ghost   Z = sum_H p^(1-l) t^l + s^(1-l) r^l

    Shing et al., arXiv 2501.16937. Their rule for l adds alpha sigmoid(m) (1 - l) per step, m a running mean of the
    loss's relative falls, and keeps l at or above the line from `start` to `end`. Relative falls are small, so that
    sigmoid(m) is 1/2 up to a few thousandths and the rule is the curve 1 - (1 - start) exp(-lead x), with x the part of
    the run done and lead = alpha steps / 2. Here l(x) = min(end, max(line, curve)): no memory of past losses to share
    between processes and to keep in checkpoints. `lead` = 0 is the line alone; the paper's alpha is 5e-4.

    Estimator: consistent with tail=draws: the sums are unbiased, their ratio is off by O(1/n). At p = t it is not: Z is
    1 there for every record, so the optimum is the teacher. Far from the teacher and at small l the draws miss where p
    has its mass, and the bias is large: begin with a pretrained student. Biased with tail=ghost: s^(1-l) r^l is no less
    than the tail's part of Z (Hölder), but that does not bound KL(q || p). Units: nats.
    """

    name: ClassVar[str] = "taid"
    tail: Tail = "draws"
    start: float = 0.4
    end: float = 1.0
    lead: float = 0.0

    def __post_init__(self) -> None:
        """Check the schedule."""
        in_range(self, "end", 0.0, 1.0)
        in_range(self, "lead", 0.0, 1000.0)
        if not 0.0 < self.start <= self.end:
            raise LossParameterError(
                f"loss 'taid': start must be above 0 and at most end={self.end:g}, got {self.start:g}"
            )

    @property
    def estimator(self) -> Estimator:
        """A ratio of unbiased sums, or of sums with a bucket."""
        return "consistent" if self.tail == "draws" else "biased"

    @property
    def needs(self) -> Needs:
        """Mass s for the bucket."""
        return Needs(tail=self.tail == "ghost")

    @property
    def requires(self) -> Requires:
        """Log-probabilities of the draws, or a head."""
        draws = self.tail == "draws"
        return Requires(head=not draws, draws=draws, tail_logprobs=draws)

    def share(self, progress: float) -> float:
        """The teacher's share l at a part of the run done, from 0 to 1."""
        line = self.start + (self.end - self.start) * progress
        curve = 1.0 - (1.0 - self.start) * math.exp(-self.lead * progress)
        return min(self.end, max(line, curve))

    def at(self, progress: float) -> "Taid":
        """The loss with the share of the teacher that the run has reached."""
        share = self.share(progress)
        return replace(self, start=share, end=share, lead=0.0)

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The divergence from the mixture with share l = `start`, per row, [R]."""
        del scale_R
        log_p_H, log_m_H = student.head_logprobs_H, self._mixed(target.head_logprobs_H, student.head_logprobs_H)
        if self.tail == "draws":
            assert target.tail_logprobs_N is not None, "`missing` asks for them"
            rows_N, log_p_N = target.tail_rows_N, student.tail_logprobs_N
            log_m_N = self._mixed(target.tail_logprobs_N, log_p_N)
            log_weight_N = log_m_N - target.tail_logprobs_N + target.tail_weights_N.log()
        else:
            rows_N, log_p_N = torch.arange(target.num_rows, device=log_p_H.device), student.log_tail_R
            log_weight_N = log_m_N = self._mixed(target.log_tail_mass_R, log_p_N)
        # Relative to the largest term: a student far from the teacher leaves p^(1-l) t^l too small for float32.
        top_R = torch.full_like(target.tail_mass_R, -torch.inf)
        top_R = top_R.scatter_reduce(0, target.head_rows_H, log_m_H, "amax")
        top_R = top_R.scatter_reduce(0, rows_N, log_weight_N, "amax")
        rest_R = torch.zeros_like(top_R).index_add_(0, rows_N, (log_weight_N - top_R[rows_N]).exp())
        log_z_R = top_R + (target.head_sum((log_m_H - top_R[target.head_rows_H]).exp()) + rest_R).log()
        log_q_H, log_q_N = log_m_H - log_z_R[target.head_rows_H], log_m_N - log_z_R[rows_N]
        gap_N = (log_q_N - log_p_N).masked_fill(log_q_N.isneginf(), 0.0)  # an empty bucket has no weight either
        on_rest_N = (log_weight_N - log_z_R[rows_N]).exp() * gap_N
        on_head_R = target.head_sum(log_q_H.exp() * (log_q_H - log_p_H))
        return on_head_R + torch.zeros_like(top_R).index_add_(0, rows_N, on_rest_N)

    def _mixed(self, log_t_E: Tensor, log_p_E: Tensor) -> Tensor:
        """Log p^(1-l) t^l, without gradient."""
        if self.start == 1.0:
            return log_t_E
        return (1.0 - self.start) * log_p_E.detach() + self.start * log_t_E
