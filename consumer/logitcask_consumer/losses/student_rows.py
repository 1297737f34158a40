"""What a loss reads of the student: log-probabilities at the record's entries, and reductions over the vocabulary.

Shape legend: R rows of a block, V vocabulary size, H head entries and N tail draws of the rows.

Everything follows from a few leaves by plain autograd: the logits z at the entries, and for the rest of the vocabulary
(all of it, or what is outside the heads) its log-sum-exp and its power sums. The gradients for the leaves are all that
`dense` needs to write the gradient for [R, V] logits.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from logitcask_consumer.losses.target import SparseTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Reductions that a formula reads besides the entries; each costs a pass over the logits."""

    tail: bool = False
    """log s, the student's mass outside the head, computed from the logits outside it."""
    powers: frozenset[float] = frozenset()
    """Exponents c for which log sum_V p^c is read."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            tail=self.tail or other.tail,
            powers=self.powers | other.powers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaves:
    """Values of R rows read from the logits, each a leaf of the formula's graph.

    Logits are relative to the rows' log-sum-exp over the rest, so that `rest_lse_R` is 0 (-inf where nothing is left).
    """

    head_logits_H: Tensor
    tail_logits_N: Tensor
    next_logits_R: Tensor
    rest_lse_R: Tensor
    rest_powers: dict[float, Tensor] = field(default_factory=dict)
    """c -> log sum_rest q^c, [R], of q, the student's distribution over the rest."""

    def tensors(self) -> list[Tensor]:
        """All leaves, in a fixed order."""
        some = [self.head_logits_H, self.tail_logits_N, self.next_logits_R, self.rest_lse_R]
        return [*some, *self.rest_powers.values()]


class StudentRows:
    """The student at R rows, as losses read it."""

    def __init__(self, leaves: Leaves, target: SparseTarget, *, rest_is_tail: bool) -> None:
        """Derive log-probabilities.

        Args:
            leaves: values of the logits.
            target: the rows' entries.
            rest_is_tail: whether the rest is what lies outside the heads; else it is the whole vocabulary.
        """
        self._leaves = leaves
        self._target = target
        self._rest_is_tail = rest_is_tail
        log_z_R = leaves.rest_lse_R
        if rest_is_tail:
            log_z_R = torch.logaddexp(log_z_R, _segment_logsumexp(leaves.head_logits_H, target))
        self._log_z_R = log_z_R
        self.head_logprobs_H = leaves.head_logits_H - log_z_R[target.head_rows_H]
        """log p of the head entries."""
        self.tail_logprobs_N = leaves.tail_logits_N - log_z_R[target.tail_rows_N]
        """log p of the draws."""
        self.next_logprobs_R = leaves.next_logits_R - log_z_R
        """log p_y of the realised next token."""

    @property
    def log_tail_R(self) -> Tensor:
        """Log s, of the student's mass outside the head; finite: the smallest number where there is none."""
        if not self._rest_is_tail:
            raise LookupError("the formula reads log s: declare Needs(tail=True)")
        # The floor keeps r · log s finite where a student gives the tail no representable mass at all.
        return (self._leaves.rest_lse_R - self._log_z_R).clamp(min=torch.finfo(self._log_z_R.dtype).min)

    def log_power_sum_R(self, exponent: float) -> Tensor:
        """Log sum_V p^exponent."""
        rest_R = self._leaves.rest_powers.get(exponent)
        if rest_R is None:
            raise LookupError(f"the formula reads sum p^{exponent:g}: declare Needs(powers={{{exponent:g}}})")
        if not self._rest_is_tail:
            return rest_R
        on_head_R = _segment_logsumexp(exponent * self.head_logprobs_H, self._target)
        return torch.logaddexp(rest_R + exponent * self.log_tail_R, on_head_R)


def _segment_logsumexp(values_H: Tensor, target: SparseTarget) -> Tensor:
    """log-sum-exp per row of a value per head entry, [R]."""
    top_R = torch.full_like(target.tail_mass_R, -torch.inf).to(values_H.dtype)
    top_R = top_R.scatter_reduce(0, target.head_rows_H, values_H.detach(), "amax")
    return target.head_sum((values_H - top_R[target.head_rows_H]).exp()).log() + top_R
