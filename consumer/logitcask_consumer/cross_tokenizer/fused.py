"""The LM head applied to spans of rows, with the gradient made in the same pass: the logits of a span, then the next.

Shape legend: T rows, D hidden size, V vocabulary size, R rows of a span.

As `losses.chunked`, but the spans are given and may share rows, so that whatever a formula sums over (an aligned chunk
of several tokens) can lie within one span. Logits are computed once; the backward pass only scales.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logitcask_consumer.losses.head import LMHead


class Span(Protocol):
    """A loss of a span of rows."""

    def __call__(self, logits_RV: Tensor, start: int, stop: int, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """The loss of rows start..stop-1, and its gradient for their logits.

        Args:
            logits_RV: float32 or float64; may be overwritten, and be the gradient.
            start: first row.
            stop: one past the last.
            with_grad: else the gradient may be None, as where the loss does not depend on the logits.
        """
        ...


def fused_head(hidden_TD: Tensor, head: LMHead, spans: Sequence[tuple[int, int]], span: Span) -> Tensor:
    """The sum of a loss over spans, differentiable in hidden states, weight and bias of the head.

    Args:
        hidden_TD: last hidden states, any floating dtype.
        head: weight, bias and logit transform.
        spans: first row and one past the last, of each span; spans may share rows.
        span: the loss. It is called in the forward pass, once per span.
    """
    inputs = (hidden_TD, head.weight_VD, head.bias_V)
    with_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    total: Tensor = _FusedHead.apply(*inputs, head, spans, span, with_grad)  # type: ignore[no-untyped-call]
    return total


class _FusedHead(torch.autograd.Function):
    """(hidden, weight, bias) -> loss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: LMHead,
        spans: Sequence[tuple[int, int]],
        span: Span,
        with_grad: bool,
    ) -> Tensor:
        kind = hidden_TD.device.type
        compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_TD.dtype
        need = [with_grad and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(kind, enabled=False):
            total, grads = _forward(hidden_TD.to(compute), weight_VD.to(compute), bias_V, head, spans, span, need)
        given = (hidden_TD, weight_VD, bias_V)
        ctx.grads = [None if g is None or x is None else g.to(x.dtype) for g, x in zip(grads, given, strict=True)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the fused head holds its gradients once: call backward once, without retain_graph")
        grads, ctx.grads = ctx.grads, None
        return (*(None if g is None else g.mul_(grad.to(g.dtype)) for g in grads), None, None, None, None)


def _forward(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    head: LMHead,
    spans: Sequence[tuple[int, int]],
    span: Span,
    need: list[bool],
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    accumulate = torch.promote_types(hidden_TD.dtype, torch.float32)
    transform = head.transform
    total = hidden_TD.new_zeros((), dtype=accumulate)
    grad_hidden_TD = torch.zeros_like(hidden_TD) if need[0] else None
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=accumulate) if need[1] else None
    grad_bias_V = torch.zeros_like(bias_V, dtype=accumulate) if need[2] and bias_V is not None else None
    for start, stop in spans:
        hidden_RD = hidden_TD[start:stop]
        logits_RV = torch.mm(hidden_RD, weight_VD.T).to(accumulate)
        if bias_V is not None:
            logits_RV.add_(bias_V)
        transform.forward_(logits_RV)
        capped_RV = logits_RV.clone() if transform.softcap is not None and any(need) else None
        value, found_RV = span(logits_RV, start, stop, with_grad=any(need))
        total += value
        if found_RV is None or not any(need):
            continue
        grad_RV = transform.backward_(found_RV, capped_RV)
        if grad_bias_V is not None:
            grad_bias_V.add_(grad_RV.sum(0))
        grad_RV = grad_RV.to(hidden_TD.dtype)
        if grad_hidden_TD is not None:
            grad_hidden_TD[start:stop].addmm_(grad_RV, weight_VD)
        if grad_weight_VD is not None:
            grad_weight_VD.add_(torch.mm(grad_RV.T, hidden_RD))
    return total, (grad_hidden_TD, grad_weight_VD, grad_bias_V)
