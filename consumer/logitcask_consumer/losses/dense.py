"""The only code that touches [rows, vocabulary]: from logits to the leaves of a formula, and from gradients back.

Shape legend: R rows of a chunk, V vocabulary size, H head entries, N tail draws.

With q = softmax over the rest (the vocabulary, or what is outside the heads) and leaves that are functions of z::

    lse = logsumexp z        d lse / d z_j     = q_j
    c   = log sum q^a        d c / d z_j       = a (q_j^a / sum q^a - q_j)

so the gradient of any formula is q times a factor per row, a term for c where it is read, and a scatter at the entries.
Passes over the rows go in blocks that fit the processor's cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from logitcask_consumer.losses.softmax import log_softmax_
from logitcask_consumer.losses.student_rows import Leaves, Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget

_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseRows:
    """A chunk after its reductions; its buffer holds log q, and -inf where the rest has no token."""

    log_q_RV: Tensor
    leaves: Leaves
    head_at_H: Tensor
    tail_at_N: Tensor
    next_at_R: Tensor
    rest_is_tail: bool

    def student(self, target: SparseTarget) -> StudentRows:
        """What a formula reads."""
        return StudentRows(self.leaves, target, rest_is_tail=self.rest_is_tail)


def reduce_(logits_RV: Tensor, target: SparseTarget, needs: Needs, *, with_grad: bool) -> DenseRows:
    """Reductions of a chunk of logits; overwrites them.

    Args:
        logits_RV: float32 or float64.
        target: the rows' entries.
        needs: what the formulas read.
        with_grad: make the leaves require gradients.
    """
    rows, width = logits_RV.shape
    flat = logits_RV.view(-1)
    first_R = torch.arange(rows, device=flat.device) * width
    head_at_H = target.head_rows_H * width + target.head_ids_H
    tail_at_N = target.tail_rows_N * width + target.tail_ids_N
    next_at_R = first_R + target.next_ids_R
    at = (head_at_H, tail_at_N, next_at_R)
    if needs.tail:
        # log s from the logits outside the head: 1 - sum_H p would lose every digit of a small tail.
        logits = [flat[i] for i in at]
        flat[head_at_H] = -torch.inf
        best_R, best_ids_R = logits_RV.max(-1)
        log_q_RV = log_softmax_(logits_RV)
        lse_R = best_R - log_q_RV.view(-1)[first_R + best_ids_R]
        rest_lse_R = torch.zeros_like(lse_R)
        if target.covers(width):
            empty_R = best_R.isneginf()
            log_q_RV.masked_fill_(empty_R[:, None], -torch.inf)
            lse_R, rest_lse_R = lse_R.masked_fill(empty_R, 0.0), rest_lse_R.masked_fill(empty_R, -torch.inf)
        shift = (lse_R[target.head_rows_H], lse_R[target.tail_rows_N], lse_R)
        values = [z - by for z, by in zip(logits, shift, strict=True)]
    else:
        log_q_RV = log_softmax_(logits_RV)
        values = [log_q_RV.view(-1)[i] for i in at]
        rest_lse_R = torch.zeros(rows, dtype=flat.dtype, device=flat.device)
    leaves = Leaves(
        head_logits_H=values[0],
        tail_logits_N=values[1],
        next_logits_R=values[2],
        rest_lse_R=rest_lse_R,
        rest_powers={c: _log_power_sum(log_q_RV, c) for c in sorted(needs.powers)},
    )
    if with_grad:
        for leaf in leaves.tensors():
            leaf.requires_grad_()
    return DenseRows(
        log_q_RV=log_q_RV,
        leaves=leaves,
        head_at_H=head_at_H,
        tail_at_N=tail_at_N,
        next_at_R=next_at_R,
        rest_is_tail=needs.tail,
    )


def gradient_(rows: DenseRows, total: Tensor) -> Tensor:
    """The gradient of a scalar formula of the leaves for the logits, [R, V]; overwrites the buffer.

    Args:
        rows: the chunk.
        total: the scalar, a function of `rows.leaves`.
    """
    leaves = rows.leaves
    found = iter(torch.autograd.grad(total, leaves.tensors(), allow_unused=True, materialize_grads=True))
    head_H, tail_N, next_R, lse_R = (next(found) for _ in range(4))
    powers_R = dict(zip(leaves.rest_powers, found, strict=True))
    buffer_RV = rows.log_q_RV
    for block in _blocks(buffer_RV):
        log_q_BV, factor_B = buffer_RV[block], lse_R[block]
        parts_BV = []
        for c, grad_R in powers_R.items():
            part_BV = log_q_BV.mul(c).sub_(leaves.rest_powers[c].detach()[block, None]).exp_()
            parts_BV.append(part_BV.mul_(c * grad_R[block, None]))
            factor_B = factor_B - c * grad_R[block]
        log_q_BV.exp_().mul_(factor_B[:, None])
        for part_BV in parts_BV:
            log_q_BV.add_(part_BV)
    flat = buffer_RV.view(-1)
    flat.index_add_(0, rows.head_at_H, head_H)
    flat.index_add_(0, rows.tail_at_N, tail_N)
    flat.index_add_(0, rows.next_at_R, next_R)
    return buffer_RV


def _blocks(buffer_RV: Tensor) -> Iterator[slice]:
    """Slices of rows, small enough for the cache on a CPU; other devices take all at once."""
    size = len(buffer_RV)
    if buffer_RV.device.type == "cpu":
        size = max(1, _BLOCK_BYTES // (buffer_RV.element_size() * buffer_RV.shape[1]))
    return (slice(start, start + size) for start in range(0, len(buffer_RV), size))


def _log_power_sum(log_q_RV: Tensor, exponent: float) -> Tensor:
    """Log sum q^exponent, [R]."""
    sums = [torch.logsumexp(exponent * log_q_RV[block], -1) for block in _blocks(log_q_RV)]
    # The floor, for an empty rest, keeps the difference from log q^exponent = -inf a number.
    return torch.cat(sums).clamp(min=torch.finfo(log_q_RV.dtype).min)
