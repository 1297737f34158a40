"""The only code that touches [rows, vocabulary]: from logits to the leaves of a formula, and from gradients back.

Shape legend: R rows of a chunk, V vocabulary size, H head entries, N tail draws, K student's top tokens.

With q = softmax over the rest (the vocabulary, or what is outside the heads) and leaves that are functions of z::

    lse = logsumexp z        d lse / d z_j     = q_j
    h   = -sum q log q       d h / d z_j       = -q_j (log q_j + h)
    c   = log sum q^a        d c / d z_j       = a (q_j^a / sum q^a - q_j)

so the gradient of any formula is q times a factor per row, a term for h and c where they are read, and a scatter at the
entries. Passes over the rows go in blocks that fit the processor's cache.
"""

from collections.abc import Callable, Iterator
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
    top_ids_RK: Tensor | None

    def student(self, target: SparseTarget) -> StudentRows:
        """What a formula reads."""
        return StudentRows(self.leaves, target, rest_is_tail=self.rest_is_tail, top_ids_RK=self.top_ids_RK)


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
    top_ids_RK = logits_RV.topk(needs.top, -1).indices if needs.top else None
    at = (head_at_H, tail_at_N, next_at_R) + (() if top_ids_RK is None else (first_R[:, None] + top_ids_RK,))
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
        shift = (lse_R[target.head_rows_H], lse_R[target.tail_rows_N], lse_R, lse_R[:, None])
        values = [z - by for z, by in zip(logits, shift, strict=False)]
    else:
        log_q_RV = log_softmax_(logits_RV)
        values = [log_q_RV.view(-1)[i] for i in at]
        rest_lse_R = torch.zeros(rows, dtype=flat.dtype, device=flat.device)
    leaves = Leaves(
        head_logits_H=values[0],
        tail_logits_N=values[1],
        next_logits_R=values[2],
        rest_lse_R=rest_lse_R,
        rest_entropy_R=_per_row(log_q_RV, _entropy) if needs.entropy else None,
        rest_powers={c: _per_row(log_q_RV, _power(c)) for c in sorted(needs.powers)},
        top_logits_RK=values[3] if top_ids_RK is not None else None,
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
        top_ids_RK=top_ids_RK,
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
    entropy_R = next(found) if leaves.rest_entropy_R is not None else None
    top_RK = next(found) if leaves.top_logits_RK is not None else None
    powers_R = dict(zip(leaves.rest_powers, found, strict=True))
    buffer_RV = rows.log_q_RV
    for block in _blocks(buffer_RV):
        log_q_BV = buffer_RV[block]
        if entropy_R is None and not powers_R:
            log_q_BV.exp_().mul_(lse_R[block, None])
            continue
        q_BV, factor_B, more_BV = log_q_BV.exp(), lse_R[block], None
        if entropy_R is not None:
            assert leaves.rest_entropy_R is not None
            more_BV = torch.special.entr(q_BV).mul_(entropy_R[block, None])
            factor_B = factor_B - entropy_R[block] * leaves.rest_entropy_R.detach()[block]
        for c, grad_R in powers_R.items():
            part_BV = log_q_BV.mul(c).sub_(leaves.rest_powers[c].detach()[block, None]).exp_()
            part_BV.mul_(c * grad_R[block, None])
            more_BV = part_BV if more_BV is None else more_BV.add_(part_BV)
            factor_B = factor_B - c * grad_R[block]
        torch.mul(q_BV, factor_B[:, None], out=log_q_BV)
        if more_BV is not None:
            log_q_BV.add_(more_BV)
    flat = buffer_RV.view(-1)
    flat.index_add_(0, rows.head_at_H, head_H)
    flat.index_add_(0, rows.tail_at_N, tail_N)
    flat.index_add_(0, rows.next_at_R, next_R)
    if top_RK is not None and rows.top_ids_RK is not None:
        buffer_RV.scatter_add_(1, rows.top_ids_RK, top_RK)
    return buffer_RV


def _blocks(buffer_RV: Tensor) -> Iterator[slice]:
    """Slices of rows, small enough for the cache on a CPU; other devices take all at once."""
    size = len(buffer_RV)
    if buffer_RV.device.type == "cpu":
        size = max(1, _BLOCK_BYTES // (buffer_RV.element_size() * buffer_RV.shape[1]))
    return (slice(start, start + size) for start in range(0, len(buffer_RV), size))


def _per_row(log_q_RV: Tensor, reduction: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([reduction(log_q_RV[block]) for block in _blocks(log_q_RV)])


def _entropy(log_q_BV: Tensor) -> Tensor:
    entropy_B: Tensor = torch.special.entr(log_q_BV.exp()).sum(-1)
    return entropy_B


def _power(exponent: float) -> Callable[[Tensor], Tensor]:
    # The floor, for an empty rest, keeps the difference from log q^c = -inf a number.
    return lambda log_q_BV: torch.logsumexp(exponent * log_q_BV, -1).clamp(min=torch.finfo(log_q_BV.dtype).min)
