"""Reverse KL: the student is punished for mass where the teacher has none."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from logitcask_consumer.losses.formulas.f_divergence import FDivergence
from logitcask_consumer.losses.loss import Tail, register


@register
@dataclass(frozen=True, kw_only=True)
class ReverseKL(FDivergence):
    """KL(student || teacher), mode-seeking: sum_j p_j log(p_j / t_j).

    f(rho) = rho log rho, whose slope at infinity is infinite: there is no control variate, and the sampled tail is
    unbiased but heavy-tailed (its terms grow like rho log rho where the student puts mass that the teacher does not).
    The ghost bucket is the default for that reason. Gu et al., MiniLLM, arXiv 2306.08543 (its single-step part).

    Estimator: bound with tail=ghost (lower), unbiased with tail=draws. Units: nats.
    """

    name: ClassVar[str] = "reverse_kl"
    tail: Tail = "ghost"

    def times_t(self, log_t_E: Tensor, log_p_E: Tensor) -> Tensor:
        """Per entry, p log(p / t)."""
        return log_p_E.exp() * (log_p_E - log_t_E)
