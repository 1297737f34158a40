"""Skew KL of DistiLLM: forward KL to a mixture, whose gradient is bounded."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.losses.formulas.f_divergence import FDivergence
from logitcask_consumer.losses.loss import in_range, register


@register
@dataclass(frozen=True, kw_only=True)
class SkewKL(FDivergence):
    """KL(t || a t + (1 - a) p): forward KL whose ratio t / m is at most 1 / a.

    f(rho) = -log(a + (1 - a) rho), slope 0 at infinity. Ko et al., DistiLLM, arXiv 2402.03898 (a = 0.1).

    Estimator: unbiased with tail=draws, bound with tail=ghost. Units: nats.
    """

    name: ClassVar[str] = "skew_kl"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        """Check alpha."""
        in_range(self, "alpha", 0.0, 1.0, open_ends=True)

    def times_t(self, log_t_E: Tensor, log_p_E: Tensor) -> Tensor:
        """Per entry, t log(t / m) with m = alpha t + (1 - alpha) p."""
        log_m_E = torch.logaddexp(log_t_E + math.log(self.alpha), log_p_E + math.log1p(-self.alpha))
        return log_t_E.exp() * (log_t_E - log_m_E)
