"""Total variation distance: one minus the expected acceptance rate of the student as a draft."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcask_consumer.losses.formulas.f_divergence import FDivergence
from logitcask_consumer.losses.loss import register


@register
@dataclass(frozen=True, kw_only=True)
class TotalVariation(FDivergence):
    """Total variation distance, sum_j |t_j - p_j| / 2 = 1 - sum_j min(t_j, p_j).

    f(rho) = |1 - rho| / 2, with slope c = 1 / 2 at infinity; what the draws add is bounded by r. Its complement is the
    rate at which a teacher accepts the student's proposals in speculative decoding (Leviathan et al., arXiv
    2211.17192). As a loss: Wen et al., f-DISTILL, arXiv 2307.15190.

    Estimator: unbiased with tail=draws, bound with tail=ghost. No unit (a probability).
    """

    name: ClassVar[str] = "tvd"

    @property
    def slope(self) -> float:
        """c, 1/2."""
        return 0.5

    def times_t(self, log_t_E: Tensor, log_p_E: Tensor) -> Tensor:
        """Per entry, |t - p| / 2."""
        return 0.5 * (log_t_E.exp() - log_p_E.exp()).abs()
