"""BiLD: the order and the distances of a few large logits, through the softmax of their pairwise differences.

Shape legend: R rows, H head entries, K tokens that lead a row, Q = K (K - 1) / 2 pairs of them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, Requires, in_range, register
from logitcask_consumer.losses.student_rows import StudentRows
from logitcask_consumer.losses.target import SparseTarget

Led: TypeAlias = Literal["both", "teacher", "student"]


@register
@dataclass(frozen=True, kw_only=True)
class LogitsDifference(Loss):
    """KL between softmaxes over the differences of every pair of the k largest logits, the teacher's and the student's.

    Tokens 1..k in descending order of who leads, d_ij = (z_i - z_j) / T for i < j, of the teacher and of the student::

        sum over both leads of KL(softmax of the teacher's d || softmax of the student's d)

    Log-probabilities differ as logits do, so the head has all it takes. Li et al., BiLD, arXiv 2406.13555 (k = 8,
    T = 3 = `soften`; led=teacher is its t-LD, led=student its s-LD). Mass outside the k tokens is not taught at all:
    mix it with a loss that does.

    What a record gives: tokens are chosen within the head. A head of at least k entries gives t-LD exactly, and s-LD
    where the student's k largest lie in it. A smaller head is taken whole, and one of fewer than three entries has no
    pair to compare with another: its loss is 0. Capture with mode `topk` to have k everywhere.

    Estimator: biased, for those two reasons; exact for a head of the whole vocabulary. Units: nats.
    """

    name: ClassVar[str] = "bild"
    estimator: ClassVar[Estimator] = "biased"
    k: int = 8
    soften: float = 3.0
    led: Led = "both"

    def __post_init__(self) -> None:
        """Check k and T."""
        in_range(self, "k", 3, 254)
        in_range(self, "soften", 0.0, 100.0, open_ends=True)

    @property
    def requires(self) -> Requires:
        """Heads of k entries, as far as the capture can promise them."""
        return Requires(head_entries=self.k)

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The divergence of the differences of the k largest logits, per row, [R]."""
        del scale_R
        log_t_H, log_p_H = target.head_logprobs_H, student.head_logprobs_H
        leaders = {"teacher": log_t_H, "student": log_p_H.detach()}
        total_R = torch.zeros_like(target.tail_mass_R)
        for name, leader_H in leaders.items():
            if self.led in (name, "both"):
                total_R = total_R + self._divergence(leader_H, log_t_H, log_p_H, target)
        return total_R

    def _divergence(self, leader_H: Tensor, log_t_H: Tensor, log_p_H: Tensor, target: SparseTarget) -> Tensor:
        index_RK, filled_RK = _largest(leader_H, target, self.k)
        first_Q, second_Q = torch.triu_indices(self.k, self.k, offset=1, device=leader_H.device)
        empty_RQ = ~filled_RK[:, second_Q]  # the lower rank of a pair is the first to be missing

        def log_share(values_H: Tensor) -> Tensor:
            values_RK = values_H[index_RK] / self.soften
            gap_RQ = values_RK[:, first_Q] - values_RK[:, second_Q]
            # Not -inf: a row without pairs would be 0 / 0.
            return torch.log_softmax(gap_RQ.masked_fill(empty_RQ, torch.finfo(gap_RQ.dtype).min / 2), -1)

        log_t_RQ, log_p_RQ = log_share(log_t_H), log_share(log_p_H)
        return (log_t_RQ.exp() * (log_t_RQ - log_p_RQ)).sum(-1)


def _largest(values_H: Tensor, target: SparseTarget, k: int) -> tuple[Tensor, Tensor]:
    """Where the k largest values of each row's head are, descending, [R, K] into H, and which of them exist, [R, K].

    Two stable sorts put the entries in order, row after row; rows keep their places, so offsets still hold.
    """
    by_size_H = values_H.argsort(descending=True, stable=True)
    order_H = by_size_H[target.head_rows_H[by_size_H].argsort(stable=True)]
    offsets_R1 = torch.from_numpy(target.head_offsets_R1).to(values_H.device)
    place_RK = offsets_R1[:-1, None] + torch.arange(k, device=values_H.device)
    filled_RK = place_RK < offsets_R1[1:, None]
    return order_H[torch.minimum(place_RK, offsets_R1[1:, None] - 1)], filled_RK
