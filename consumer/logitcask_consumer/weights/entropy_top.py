"""Only the positions where the student is least sure are trained."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.head.fused_head import rows_of
from logitcask_consumer.head.lm_head import LMHead
from logitcask_consumer.weights.weight import Weight, WeightParameterError, in_range, register

_BLOCK_BYTES = 2**20


@register
@dataclass(frozen=True, kw_only=True)
class EntropyTop(Weight):
    """1 for the share `keep` of a sequence's positions with the highest entropy of the student, 0 for the others.

    Formula, with H(p_i) = -sum_V p log p of the student at position i, in nats, and N positions in the sequence
    (after all other weights: those of weight 0 do not take part)::

        w_i = 1 where H(p_i) is among the ceil(keep N) highest of the sequence, else 0

    SE-KD, arXiv 2602.01395 (the best 20 % by student entropy). A sequence is one of `--seq-len` slots, perhaps of
    several documents; so the choice depends neither on micro-batches nor on the number of processes.

    Cost: the head is applied once more to all positions, without gradient, in blocks of rows; loss, gradient and target
    then cost only what the chosen positions do. On a device the host waits once per batch for the choice.
    """

    name: ClassVar[str] = "entropy_top"
    keep: float = 0.2

    def __post_init__(self) -> None:
        """Check it."""
        in_range(self, "keep", 0.0, 1.0)
        if self.keep == 0.0:
            raise WeightParameterError("weight 'entropy_top': keep must be above 0, or nothing is trained")

    def kept(self, counts_B: Tensor) -> Tensor:
        """How many of so many positions are chosen, int64 like the counts."""
        # The offset takes back what rounding adds to a product that is a whole number.
        return torch.ceil(counts_B.to(torch.float64) * self.keep - 1e-9).to(torch.int64)

    @torch.no_grad()
    def choose(self, hidden_TD: Tensor, head: LMHead, sequences_T: Tensor, block_rows: int | None = None) -> Tensor:
        """Numbers of the chosen rows, ascending, int64.

        Args:
            hidden_TD: last hidden states of T positions.
            head: the student's.
            sequences_T: number of the sequence of each position.
            block_rows: rows of logits held at a time; None chooses what fits the device, see `default_rows`.
        """
        if not len(hidden_TD):
            return torch.empty_like(sequences_T)
        entropy_T = student_entropy(hidden_TD, head, block_rows)
        counts_B = torch.bincount(sequences_T)
        by_entropy_T = torch.argsort(entropy_T, descending=True, stable=True)
        order_T = by_entropy_T[torch.argsort(sequences_T[by_entropy_T], stable=True)]
        of_T = sequences_T[order_T]
        rank_T = torch.arange(len(order_T), device=order_T.device) - (counts_B.cumsum(0) - counts_B)[of_T]
        return order_T[rank_T < self.kept(counts_B)[of_T]].sort().values


@torch.no_grad()
def student_entropy(hidden_TD: Tensor, head: LMHead, block_rows: int | None = None) -> Tensor:
    """Entropy of the student's distribution at T positions, nats, float32 (float64 for float64 hidden states)."""
    rows = rows_of(block_rows, head)
    dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
    parts = []
    for start in range(0, len(hidden_TD), rows):
        logits_RV = head.logits(hidden_TD[start : start + rows])
        block = _block(logits_RV)
        for first in range(0, len(logits_RV), block):
            logp_BV = torch.log_softmax(logits_RV[first : first + block].to(dtype), -1)
            # An id without any probability adds 0 · log 0 = 0.
            finite_BV = logp_BV.clamp(min=torch.finfo(dtype).min)
            parts.append(torch.linalg.vecdot(logp_BV.exp(), finite_BV).neg_())
    return torch.cat(parts) if parts else hidden_TD.new_zeros(0, dtype=dtype)


def _block(logits_RV: Tensor) -> int:
    """Rows that fit a processor's cache; other devices take all at once."""
    if logits_RV.device.type != "cpu":
        return max(1, len(logits_RV))
    return max(1, _BLOCK_BYTES // (4 * logits_RV.shape[1]))
