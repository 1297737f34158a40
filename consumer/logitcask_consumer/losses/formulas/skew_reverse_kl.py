"""Skew reverse KL of DistiLLM: reverse KL to a mixture, which needs no teacher mass everywhere."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.losses.formulas.f_divergence import FDivergence
from logitcask_consumer.losses.loss import in_range, register


@register
@dataclass(frozen=True, kw_only=True)
class SkewReverseKL(FDivergence):
    """KL(p || (1 - a) t + a p): reverse KL whose ratio p / m is at most 1 / a.

    f(rho) = rho log(rho / ((1 - a) + a rho)), with slope c = log(1 / a) at infinity. Ko et al., DistiLLM,
    arXiv 2402.03898 (a = 0.1).

    Estimator: unbiased with tail=draws (control variate c s), bound with tail=ghost. Units: nats.
    """

    name: ClassVar[str] = "skew_reverse_kl"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        """Check alpha."""
        in_range(self, "alpha", 0.0, 1.0, open_ends=True)

    @property
    def slope(self) -> float:
        """c, -log alpha."""
        return -math.log(self.alpha)

    def times_t(self, log_t_E: Tensor, log_p_E: Tensor) -> Tensor:
        """Per entry, p log(p / m) with m = (1 - alpha) t + alpha p."""
        log_m_E = torch.logaddexp(log_t_E + math.log1p(-self.alpha), log_p_E + math.log(self.alpha))
        return log_p_E.exp() * (log_p_E - log_m_E)
