"""A loss through the LM head in row chunks: [rows, vocab] exists for one chunk at a time, never for the batch.

Shape legend: T trained positions of a batch, D hidden size, V vocabulary size, R rows of a chunk, K rank of an
adapter of the head.

The forward pass already computes the gradients for hidden states and head, chunk by chunk, and drops the logits; the
backward pass only multiplies by the incoming scalar. Logits are therefore computed once, and the largest float32
buffer is R x V. (The idea of fusing head and loss: Hsu et al., Liger Kernel, arXiv 2410.10989; Wijmans et al., Cut Your
Losses, arXiv 2411.09009.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logitcask_consumer.losses.chunk_terms import Scales, chunk_gradient
from logitcask_consumer.losses.head import LMHead
from logitcask_consumer.losses.loss import Loss
from logitcask_consumer.losses.target import SparseTarget
from logitcask_schemas.errors import LogitcaskError

Terms: TypeAlias = Sequence[tuple[float, Loss]]
"""A mix of losses, each with its weight."""

CHUNK_BYTES = 64 * 2**20
"""Default size of the largest buffer, [R, V] in float32. On two CPU cores at V = 49,152 the head costs 1.39, 1.21, 1.11
and 1.05 ms per row with 64, 128, 256 and 512 rows: 64 MiB (341 rows) is within 5 % of the best."""


class ShapeError(LogitcaskError, ValueError):
    """Tensors given to a loss do not fit each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossResult:
    """Loss of a batch, in nats, summed over positions; divide by the number of positions outside."""

    loss: Tensor
    """sum over positions of their weight times the weighted sum of the terms, a differentiable scalar."""
    terms_KT: Tensor
    """Each term at each position, without weights, detached."""
    ce_T: Tensor
    """-log p_y of each position, detached."""


def distillation_loss(
    hidden_TD: Tensor,
    head: LMHead,
    target: SparseTarget,
    terms: Terms,
    *,
    weights_T: Tensor | None = None,
    chunk_rows: int | None = None,
) -> LossResult:
    """Apply the LM head and a mix of losses to the hidden states of T positions, summed over them.

    Args:
        hidden_TD: last hidden states of the trained positions, any floating dtype.
        head: weight, bias and logit transform.
        target: T rows of the teacher's target, row i for hidden state i.
        terms: K losses with their weights.
        weights_T: weight of each position; None for 1. Leave positions of weight 0 out: they cost as much as others.
        chunk_rows: rows of logits held at a time; None chooses about `CHUNK_BYTES`.

    Raises:
        ShapeError: rows, hidden size or vocabulary do not fit, or there is no term.

    Within `torch.compile` it is one graph break and runs as it is.
    """
    if torch.compiler.is_compiling():
        # Traced, it would fall into dozens of graphs between its loops and offsets.
        apart: _Plain = torch.compiler.disable(_distillation_loss)  # type: ignore[no-untyped-call]
        return apart(hidden_TD, head, target, terms, weights_T, chunk_rows)
    return _distillation_loss(hidden_TD, head, target, terms, weights_T, chunk_rows)


_Plain: TypeAlias = Callable[[Tensor, LMHead, SparseTarget, Terms, Tensor | None, int | None], LossResult]


def _distillation_loss(
    hidden_TD: Tensor,
    head: LMHead,
    target: SparseTarget,
    terms: Terms,
    weights_T: Tensor | None,
    chunk_rows: int | None,
) -> LossResult:
    """See `distillation_loss`."""
    _check(hidden_TD, head, target, terms, weights_T)
    rows = chunk_rows if chunk_rows is not None else max(1, CHUNK_BYTES // (4 * head.vocab_size))
    if rows < 1:
        raise ShapeError(f"chunk_rows must be at least 1, got {rows}")
    # What goes through an adapter's narrow side is small: plain autograd carries it on to A and to the hidden states.
    low_TK = None if head.low_rank is None else head.low_rank.down(hidden_TD)
    up_VK = None if head.low_rank is None else head.low_rank.up_VK
    inputs = (hidden_TD, head.weight_VD, head.bias_V, low_TK, up_VK)
    with_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    job = _Job(head=head, target=target, terms=terms, weights_T=weights_T, rows=rows, with_grad=with_grad)
    total, terms_KT, ce_T = _ChunkedLoss.apply(*inputs, job)  # type: ignore[no-untyped-call]
    return LossResult(loss=total, terms_KT=terms_KT, ce_T=ce_T)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the autograd function needs besides its differentiable inputs."""

    head: LMHead
    target: SparseTarget
    terms: Terms
    weights_T: Tensor | None
    rows: int
    with_grad: bool


class _ChunkedLoss(torch.autograd.Function):
    """(hidden, weight, bias, adapter's low, up) -> (loss, terms per row, ce per row), gradients made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        low_TK: Tensor | None,
        up_VK: Tensor | None,
        job: _Job,
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute = _compute_dtype(hidden_TD)
        low = None if low_TK is None or up_VK is None else (low_TK.to(compute), up_VK.to(compute))
        with torch.autocast(hidden_TD.device.type, enabled=False):
            return _forward(ctx, hidden_TD.to(compute), weight_VD.to(compute), bias_V, low, job)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _terms: Any, _ce: Any) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the chunked loss holds its gradients once: call backward once, without retain_graph")
        grads, ctx.grads = ctx.grads, None
        # In place: a copy of the head's gradient would be the largest tensor of the step.
        return (*(None if g is None else g.mul_(grad.to(g.dtype)) for g in grads), None)


def _forward(
    ctx: Any,
    hidden_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    low: tuple[Tensor, Tensor] | None,
    job: _Job,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loop over the chunks; leaves the gradients (hidden, weight, bias, low, up) in `ctx.grads`."""
    # Logits and softmax are float32 at least; gradients of the parameters accumulate over chunks in that type too.
    accumulate = torch.promote_types(hidden_TD.dtype, torch.float32)
    transform, target = job.head.transform, job.target.to_dtype(accumulate)
    scales = Scales.of(job.terms, target)
    total = hidden_TD.new_zeros((), dtype=accumulate)
    terms_KT = hidden_TD.new_empty((len(job.terms), len(hidden_TD)), dtype=accumulate)
    ce_T = torch.empty_like(terms_KT[0])
    weights_T = None if job.weights_T is None else job.weights_T.to(accumulate)
    need = [job.with_grad and needed for needed in ctx.needs_input_grad[:5]]
    grad_hidden_TD = torch.empty_like(hidden_TD) if need[0] else None
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=accumulate) if need[1] else None
    grad_bias_V = torch.zeros_like(bias_V, dtype=accumulate) if need[2] and bias_V is not None else None
    grad_low_TK = torch.zeros_like(low[0]) if need[3] and low is not None else None
    grad_up_VK = torch.zeros_like(low[1], dtype=accumulate) if need[4] and low is not None else None
    for start in range(0, len(hidden_TD), job.rows):
        chunk = slice(start, min(start + job.rows, len(hidden_TD)))
        hidden_RD = hidden_TD[chunk]
        products_RV = torch.mm(hidden_RD, weight_VD.T)
        if low is not None:
            products_RV.addmm_(low[0][chunk], low[1].T)
        logits_RV = products_RV.to(accumulate)
        if bias_V is not None:
            logits_RV.add_(bias_V)
        transform.forward_(logits_RV)
        capped_RV = logits_RV.clone() if transform.softcap is not None and any(need) else None
        done = chunk_gradient(
            logits_RV,
            target.rows(chunk.start, chunk.stop),
            job.terms,
            scales.rows(chunk),
            weights_R=None if weights_T is None else weights_T[chunk],
            with_grad=any(need),
        )
        total += done.total
        terms_KT[:, chunk], ce_T[chunk] = done.terms_KR, done.ce_R
        if done.grad_RV is None:
            if grad_hidden_TD is not None:
                grad_hidden_TD[chunk] = 0.0
            continue
        grad_RV = transform.backward_(done.grad_RV, capped_RV)
        if grad_bias_V is not None:
            grad_bias_V.add_(grad_RV.sum(0))
        grad_RV = grad_RV.to(hidden_TD.dtype)
        if grad_hidden_TD is not None:
            torch.mm(grad_RV, weight_VD, out=grad_hidden_TD[chunk])
        if grad_weight_VD is not None:
            _accumulate(grad_weight_VD, grad_RV, hidden_RD)
        if grad_low_TK is not None and low is not None:
            torch.mm(grad_RV, low[1], out=grad_low_TK[chunk])
        if grad_up_VK is not None and low is not None:
            _accumulate(grad_up_VK, grad_RV, low[0][chunk])
    ctx.grads = (
        grad_hidden_TD,
        None if grad_weight_VD is None else grad_weight_VD.to(job.head.weight_VD.dtype),
        None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype),
        grad_low_TK,
        grad_up_VK,
    )
    ctx.mark_non_differentiable(terms_KT, ce_T)
    return total, terms_KT, ce_T


def _accumulate(total_VE: Tensor, grad_RV: Tensor, input_RE: Tensor) -> None:
    """Add a chunk's gradient for a weight; the sum over chunks has the wider type."""
    if grad_RV.dtype == total_VE.dtype:
        total_VE.addmm_(grad_RV.T, input_RE)
    else:
        total_VE.add_(torch.mm(grad_RV.T, input_RE))


def _compute_dtype(hidden_TD: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on, else that of the hidden states."""
    kind = hidden_TD.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_TD.dtype


def _check(hidden_TD: Tensor, head: LMHead, target: SparseTarget, terms: Terms, weights_T: Tensor | None) -> None:
    if hidden_TD.ndim != 2 or hidden_TD.shape[1] != head.weight_VD.shape[1]:
        raise ShapeError(
            f"hidden states must be [positions, {head.weight_VD.shape[1]}] for a head of "
            f"{tuple(head.weight_VD.shape)}, got {tuple(hidden_TD.shape)}"
        )
    if len(hidden_TD) != target.num_rows:
        raise ShapeError(
            f"{len(hidden_TD)} hidden states for a target of {target.num_rows} rows: each trained position needs one; "
            "a document of L tokens has L - 1 positions"
        )
    if weights_T is not None and weights_T.shape != (target.num_rows,):
        raise ShapeError(f"{target.num_rows} positions need as many weights, got {tuple(weights_T.shape)}")
    if not terms:
        raise ShapeError("a mix of losses needs at least one term")
