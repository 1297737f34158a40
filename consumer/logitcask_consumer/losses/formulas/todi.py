"""ToDi: forward KL where the student is below the teacher, reverse KL where it is above, token by token."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.losses.formulas.f_divergence import FDivergence
from logitcask_consumer.losses.loss import Estimator, Tail, in_range, register


@register
@dataclass(frozen=True, kw_only=True)
class ToDi(FDivergence):
    """Token-wise mix of forward and reverse KL: sum_j a_j t_j log(t_j / p_j) + (1 - a_j) p_j log(p_j / t_j).

    a_j = sigmoid(beta log(t_j / p_j)), without gradient. With beta = 1 the value is Jeffreys' divergence,
    sum (t - p) log(t / p). Its reverse part has no control variate (see `ReverseKL`), hence the ghost bucket as
    default. arXiv 2505.16297.

    Estimator: unbiased with tail=draws (heavy-tailed); with tail=ghost a bound for beta = 1, else biased. Units: nats.
    """

    name: ClassVar[str] = "todi"
    tail: Tail = "ghost"
    beta: float = 1.0

    def __post_init__(self) -> None:
        """Check beta."""
        in_range(self, "beta", 0.0, 100.0)

    @property
    def estimator(self) -> Estimator:
        """Coarsening bounds f-divergences; of other beta than 1 it is not known to be one."""
        return super().estimator if self.tail == "draws" or self.beta == 1.0 else "biased"

    def times_t(self, log_t_E: Tensor, log_p_E: Tensor) -> Tensor:
        """Both KL terms of each entry, mixed by which of t and p is larger."""
        gap_E = log_t_E - log_p_E
        share_E = torch.sigmoid(self.beta * gap_E.detach())
        return (share_E * log_t_E.exp() - (1.0 - share_E) * log_p_E.exp()) * gap_E
