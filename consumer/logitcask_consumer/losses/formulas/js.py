"""Generalised Jensen-Shannon divergence: bounded, between forward and reverse KL."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.losses.formulas.f_divergence import FDivergence
from logitcask_consumer.losses.loss import in_range, register


@register
@dataclass(frozen=True, kw_only=True)
class JensenShannon(FDivergence):
    """Generalised Jensen-Shannon divergence: b KL(t || m) + (1 - b) KL(p || m) with m = b t + (1 - b) p.

    f(rho) = -b log(b + (1 - b) rho) + (1 - b) rho log(rho / (b + (1 - b) rho)), with slope
    c = (1 - b) log(1 / (1 - b)) at infinity. Divided by b it tends to KL(t || p) for b -> 0, and divided by 1 - b to
    KL(p || t) for b -> 1. Agarwal et al., GKD, arXiv 2306.13649.

    Estimator: unbiased with tail=draws (control variate c s: the terms left over are bounded), bound with tail=ghost.
    Units: nats.
    """

    name: ClassVar[str] = "js"
    beta: float = 0.5

    def __post_init__(self) -> None:
        """Check beta."""
        in_range(self, "beta", 0.0, 1.0, open_ends=True)

    @property
    def slope(self) -> float:
        """c, -(1 - beta) log(1 - beta)."""
        return (1.0 - self.beta) * -math.log1p(-self.beta)

    def times_t(self, log_t_E: Tensor, log_p_E: Tensor) -> Tensor:
        """Per entry, beta t log(t / m) + (1 - beta) p log(p / m) with m = beta t + (1 - beta) p."""
        log_m_E = torch.logaddexp(log_t_E + math.log(self.beta), log_p_E + math.log1p(-self.beta))
        on_t_E = self.beta * log_t_E.exp() * (log_t_E - log_m_E)
        return on_t_E + (1.0 - self.beta) * log_p_E.exp() * (log_p_E - log_m_E)
