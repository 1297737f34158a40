"""Adaptive KL (AKL): forward and reverse KL mixed by where the student's error lies, in the peak or in the rest."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, Requires, in_range, register
from logitcask_consumer.losses.student_rows import Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget


@register
@dataclass(frozen=True, kw_only=True)
class AdaptiveKL(Loss):
    """w KL(t || p) + (1 - w) KL(p || t), with w = g_peak / (g_peak + g_rest) and g = sum |t - p|, without gradient.

    The peak is the teacher's most likely tokens up to the mass mu, at least one; g_rest takes the rest of the head
    token by token and the tail as |r - s|. The forward part uses the draws, the reverse part the tail as one bucket
    (see `ReverseKL`). Wu et al., arXiv 2404.02657 (mu = 0.5).

    Estimator: biased; each part is what it is alone (unbiased, bound), the weights are approximate by what |r - s|
    misses of the tail. Exact for a head of the whole vocabulary. Units: nats, less (w) H(t), a constant of no gradient.
    """

    name: ClassVar[str] = "adaptive_kl"
    estimator: ClassVar[Estimator] = "biased"
    needs: ClassVar[Needs] = Needs(tail=True)
    requires: ClassVar[Requires] = Requires(draws=True)
    mu: float = 0.5

    def __post_init__(self) -> None:
        """Check mu."""
        in_range(self, "mu", 0.0, 1.0)

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The two KL divergences, mixed by how far head and tail are off, per row, [R]."""
        del scale_R
        t_H, log_p_H, log_s_R = target.head_weights_H, student.head_logprobs_H, student.log_tail_R
        forward_R = -target.head_sum(t_H * log_p_H)
        forward_R = forward_R - target.tail_sum(target.tail_weights_N * student.tail_logprobs_N)
        floor = float(np.log(torch.finfo(t_H.dtype).tiny))
        log_r_R = target.log_tail_mass_R.clamp(min=floor)
        reverse_R = target.head_sum(log_p_H.exp() * (log_p_H - target.head_logprobs_H))
        reverse_R = reverse_R + log_s_R.exp() * (log_s_R.clamp(min=floor) - log_r_R)
        gap_H = (t_H - log_p_H.detach().exp()).abs()
        is_peak_H = self._peak(target)
        peak_R = target.head_sum(gap_H * is_peak_H)
        rest_R = target.head_sum(gap_H * ~is_peak_H) + (target.tail_mass_R - log_s_R.detach().exp()).abs()
        share_R = peak_R / (peak_R + rest_R).clamp(min=torch.finfo(t_H.dtype).tiny)
        return share_R * forward_R + (1.0 - share_R) * reverse_R

    def _peak(self, target: SparseTarget) -> Tensor:
        """Whether an entry and those before it in its row hold at most mu; always for the first. Heads descend."""
        sums_H = target.head_weights_H.double().cumsum(0)
        first_at_R = torch.from_numpy(target.head_offsets_R1[:-1]).to(sums_H.device)
        before_R = sums_H[first_at_R] - target.head_weights_H[first_at_R]
        within_H = sums_H - before_R[target.head_rows_H]
        peak_H = within_H <= self.mu
        peak_H[first_at_R] = True
        return peak_H
