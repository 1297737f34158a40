"""The LM head applied to spans of rows, with the gradient made in the same pass: the logits of a span, then the next.

Shape legend: T rows, D hidden size, V vocabulary size, R rows of a span, K rank of an adapter of the head.

The forward pass already computes the gradients for hidden states and head, span by span, and drops the logits; the
backward pass only multiplies by the incoming scalar. Logits are therefore computed once, and the largest float32
buffer is R x V. (The idea of fusing head and loss: Hsu et al., Liger Kernel, arXiv 2410.10989; Wijmans et al., Cut Your
Losses, arXiv 2411.09009.) Spans may share rows, so that whatever a formula sums over (an aligned chunk of several
tokens) can lie within one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logitcask_consumer.head.lm_head import LMHead, LogitTransform
from logitcask_schemas.errors import LogitcaskError

CHUNK_BYTES: Final = 64 * 2**20
"""Size of the largest buffer on a CPU, [R, V] in float32. At V = 49,152 on two cores the head costs 1.39, 1.21, 1.11
and 1.05 ms per row with 64, 128, 256 and 512 rows: 64 MiB (341 rows) is within 5 % of the best."""

LEAST_ROWS: Final = 256
"""Rows that a span has at least. Every span reads the head's weight twice, reads its gradient and writes it. With 256
instead of 64 rows (64 MiB) at V = 262,144, D = 576, a step takes 0.85 instead of 1.00 of the time of one that holds all
logits; with 256 instead of 110 at V = 151,936, D = 2,048, 1.15 instead of 1.23."""

ACCELERATOR_CHUNK_BYTES: Final = 1280 * 2**20
"""Size of that buffer on other devices: 2,208 rows at V = 151,936. There memory traffic is what a span costs: of 8,192
rows at D = 3,072, spans of 256 rows move the float32 gradient of the head (1.9 GB) 32 times, these ones 4 times. It is
the same on every such device, since sums of gradients follow the spans."""


class SpanLoss(Protocol):
    """A loss of a span of rows."""

    def __call__(self, logits_RV: Tensor, start: int, stop: int, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """The loss of rows start..stop-1, and its gradient for their logits.

        Args:
            logits_RV: of type `wide_dtype`; may be overwritten, and be the gradient.
            start: first row.
            stop: one past the last.
            with_grad: else the gradient may be None, as where the loss does not depend on the logits.
        """
        ...


class ShapeError(LogitcaskError, ValueError):
    """Tensors given to a loss do not fit each other."""


def rows_of(block_rows: int | None, head: LMHead) -> int:
    """Rows of a span: those asked for, or the default.

    Raises:
        ShapeError: fewer than one.
    """
    if block_rows is not None and block_rows < 1:
        raise ShapeError(f"block_rows must be at least 1, got {block_rows}")
    return default_rows(head) if block_rows is None else block_rows


def default_rows(head: LMHead) -> int:
    """Rows of a span whose logits take about `chunk_bytes` of the head's device, `LEAST_ROWS` at least."""
    return max(LEAST_ROWS, chunk_bytes(head.weight_VD.device) // (4 * head.vocab_size))


def chunk_bytes(device: torch.device) -> int:
    """Size of the largest buffer on a device."""
    return CHUNK_BYTES if device.type == "cpu" else ACCELERATOR_CHUNK_BYTES


def matmul_dtype(hidden_TD: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on, else that of the hidden states."""
    kind = hidden_TD.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_TD.dtype


def wide_dtype(hidden_TD: Tensor) -> torch.dtype:
    """The dtype of logits, losses and sums of gradients: float32 at least."""
    return torch.promote_types(matmul_dtype(hidden_TD), torch.float32)


def fused_head(hidden_TD: Tensor, head: LMHead, spans: Sequence[tuple[int, int]], loss: SpanLoss) -> Tensor:
    """The sum of a loss over spans, differentiable in hidden states, weight, bias and adapter of the head.

    Args:
        hidden_TD: last hidden states, any floating dtype.
        head: weight, bias, adapter and logit transform.
        spans: first row and one past the last, of each span; spans may share rows.
        loss: called in the forward pass, once per span.
    """
    # What goes through an adapter's narrow side is small: plain autograd carries it on to A and to the hidden states.
    low_TK = None if head.low_rank is None else head.low_rank.down(hidden_TD)
    up_VK = None if head.low_rank is None else head.low_rank.up_VK
    inputs = (hidden_TD, head.weight_VD, head.bias_V, low_TK, up_VK)
    with_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    total: Tensor = _FusedHead.apply(*inputs, head.transform, spans, loss, with_grad)  # type: ignore[no-untyped-call]
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
        transform: LogitTransform,
        spans: Sequence[tuple[int, int]],
        loss: SpanLoss,
        with_grad: bool,
    ) -> Tensor:
        compute = matmul_dtype(hidden_TD)
        pass_ = _Pass(
            hidden_TD=hidden_TD.to(compute),
            weight_VD=weight_VD.to(compute),
            bias_V=bias_V,
            low=None if low_TK is None or up_VK is None else (low_TK.to(compute), up_VK.to(compute)),
            transform=transform,
            need=tuple(with_grad and needed for needed in ctx.needs_input_grad[:5]),
            wide=wide_dtype(hidden_TD),
        )
        with torch.autocast(hidden_TD.device.type, enabled=False):
            total, grads = pass_.run(spans, loss)
        inputs = (hidden_TD, weight_VD, bias_V, low_TK, up_VK)
        ctx.grads = [None if g is None or x is None else g.to(x.dtype) for g, x in zip(grads, inputs, strict=True)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the fused head holds its gradients once: call backward once, without retain_graph")
        grads, ctx.grads = ctx.grads, None
        # In place: a copy of the head's gradient would be the largest tensor of the step.
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
    wide: torch.dtype

    def run(self, spans: Sequence[tuple[int, int]], loss: SpanLoss) -> tuple[Tensor, list[Tensor | None]]:
        """The loss, and the gradients in the order of the inputs."""
        total, any_grad = self.hidden_TD.new_zeros((), dtype=self.wide), any(self.need)
        inputs = (self.hidden_TD, self.weight_VD, self.bias_V, *(self.low or (None, None)))
        # Gradients of the parameters add up over spans in the wider type.
        types = (self.hidden_TD.dtype, self.wide, self.wide, self.hidden_TD.dtype, self.wide)
        grads = [
            torch.zeros_like(x, dtype=dtype) if needed and x is not None else None
            for x, dtype, needed in zip(inputs, types, self.need, strict=True)
        ]
        for start, stop in spans:
            logits_RV = self._logits(start, stop)
            capped_RV = logits_RV.clone() if self.transform.softcap is not None and any_grad else None
            value, grad_RV = loss(logits_RV, start, stop, with_grad=any_grad)
            total += value
            if grad_RV is not None and any_grad:
                self._add(grads, self.transform.backward_(grad_RV, capped_RV), start, stop)
            # Else the next span's logits are made while these still stand.
            del logits_RV, capped_RV, grad_RV
        return total, grads

    def _logits(self, start: int, stop: int) -> Tensor:
        products_RV = torch.mm(self.hidden_TD[start:stop], self.weight_VD.T)
        if self.low is not None:
            products_RV.addmm_(self.low[0][start:stop], self.low[1].T)
        logits_RV = products_RV.to(self.wide)
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
            _accumulate(weight_VD, grad_RV, self.hidden_TD[start:stop])
        if self.low is None:
            return
        if low_TK is not None:
            low_TK[start:stop].addmm_(grad_RV, self.low[1])
        if up_VK is not None:
            _accumulate(up_VK, grad_RV, self.low[0][start:stop])


def _accumulate(total_VE: Tensor, grad_RV: Tensor, input_RE: Tensor) -> None:
    """Add a span's gradient for a weight to a sum that may be of a wider type."""
    if grad_RV.dtype == total_VE.dtype:
        total_VE.addmm_(grad_RV.T, input_RE)
    else:
        total_VE.add_(torch.mm(grad_RV.T, input_RE))
