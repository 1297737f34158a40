"""The LM head applied to spans of rows, with the gradient made in the same pass: the logits of a span, then the next.

Shape legend: T rows, D hidden size, V vocabulary size, R rows of a span, K rank of an adapter.

As `losses.chunked`, but the spans are given and may share rows, so that whatever a formula sums over (an aligned chunk
of several tokens) can lie within one span. Logits are computed once; the backward pass only scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logitcask_consumer.losses.head import LMHead, LogitTransform


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
    """The sum of a loss over spans, differentiable in hidden states, weight, bias and adapter of the head.

    Args:
        hidden_TD: last hidden states, any floating dtype.
        head: weight, bias, adapter and logit transform.
        spans: first row and one past the last, of each span; spans may share rows.
        span: the loss. It is called in the forward pass, once per span.
    """
    # What goes through an adapter's narrow side is small: plain autograd carries it on to A and to the hidden states.
    low_TK = None if head.low_rank is None else head.low_rank.down(hidden_TD)
    up_VK = None if head.low_rank is None else head.low_rank.up_VK
    inputs = (hidden_TD, head.weight_VD, head.bias_V, low_TK, up_VK)
    with_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    total: Tensor = _FusedHead.apply(*inputs, head, spans, span, with_grad)  # type: ignore[no-untyped-call]
    return total


class _FusedHead(torch.autograd.Function):
    """(hidden, weight, bias, adapter's low, up) -> loss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        low_TK: Tensor | None,
        up_VK: Tensor | None,
        head: LMHead,
        spans: Sequence[tuple[int, int]],
        span: Span,
        with_grad: bool,
    ) -> Tensor:
        kind = hidden_TD.device.type
        compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_TD.dtype
        low = None if low_TK is None or up_VK is None else (low_TK.to(compute), up_VK.to(compute))
        pass_ = _Pass(
            hidden_TD=hidden_TD.to(compute),
            weight_VD=weight_VD.to(compute),
            bias_V=bias_V,
            low=low,
            transform=head.transform,
            need=tuple(with_grad and needed for needed in ctx.needs_input_grad[:5]),
        )
        with torch.autocast(kind, enabled=False):
            total, grads = pass_.run(spans, span)
        given = (hidden_TD, weight_VD, bias_V, low_TK, up_VK)
        ctx.grads = [None if g is None or x is None else g.to(x.dtype) for g, x in zip(grads, given, strict=True)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the fused head holds its gradients once: call backward once, without retain_graph")
        grads, ctx.grads = ctx.grads, None
        return (*(None if g is None else g.mul_(grad.to(g.dtype)) for g in grads), None, None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One pass over the spans; tensors have the dtype of the matrix products."""

    hidden_TD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    low: tuple[Tensor, Tensor] | None
    """drop(h) Aᵀ, [T, K], and B, [V, K], of an adapter."""
    transform: LogitTransform
    need: tuple[bool, ...]
    """Which gradients, in the order of the inputs."""

    def run(self, spans: Sequence[tuple[int, int]], span: Span) -> tuple[Tensor, list[Tensor | None]]:
        """The loss, and the gradients in the order of the inputs."""
        # Logits and softmax are float32 at least; gradients of the parameters add up in that type too.
        wide = torch.promote_types(self.hidden_TD.dtype, torch.float32)
        total, any_grad = self.hidden_TD.new_zeros((), dtype=wide), any(self.need)
        inputs = (self.hidden_TD, self.weight_VD, self.bias_V, *(self.low or (None, None)))
        types = (self.hidden_TD.dtype, wide, wide, self.hidden_TD.dtype, wide)
        grads = [
            torch.zeros_like(x, dtype=dtype) if needed and x is not None else None
            for x, dtype, needed in zip(inputs, types, self.need, strict=True)
        ]
        for start, stop in spans:
            logits_RV = self._logits(start, stop, wide)
            capped_RV = logits_RV.clone() if self.transform.softcap is not None and any_grad else None
            value, found_RV = span(logits_RV, start, stop, with_grad=any_grad)
            total += value
            if found_RV is not None and any_grad:
                self._add(grads, self.transform.backward_(found_RV, capped_RV), start, stop)
        return total, grads

    def _logits(self, start: int, stop: int, wide: torch.dtype) -> Tensor:
        products_RV = torch.mm(self.hidden_TD[start:stop], self.weight_VD.T)
        if self.low is not None:
            products_RV.addmm_(self.low[0][start:stop], self.low[1].T)
        logits_RV = products_RV.to(wide)
        if self.bias_V is not None:
            logits_RV.add_(self.bias_V)
        return self.transform.forward_(logits_RV)

    def _add(self, grads: list[Tensor | None], grad_RV: Tensor, start: int, stop: int) -> None:
        """Add a span's part to every gradient that is wanted; spans may share rows."""
        hidden_TD, weight_VD, bias_V, low_TK, up_VK = grads
        if bias_V is not None:
            bias_V.add_(grad_RV.sum(0))
        grad_RV = grad_RV.to(self.hidden_TD.dtype)
        if hidden_TD is not None:
            hidden_TD[start:stop].addmm_(grad_RV, self.weight_VD)
        if weight_VD is not None:
            weight_VD.add_(torch.mm(grad_RV.T, self.hidden_TD[start:stop]))
        if self.low is None:
            return
        if low_TK is not None:
            low_TK[start:stop].addmm_(grad_RV, self.low[1])
        if up_VK is not None:
            up_VK.add_(torch.mm(grad_RV.T, self.low[0][start:stop]))
