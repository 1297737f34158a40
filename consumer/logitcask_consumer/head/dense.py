"""The only code that touches [rows, vocabulary]: from logits to the leaves of a formula, and from gradients back.

Shape legend: R rows of a block, V vocabulary size, H head entries, N tail draws.

The passes over the rows are `softmax`'s, or those of `triton_passes`, which are opt-in until they have run on a GPU.
`_takes_triton` is the one place that chooses, by what `dense_passes` says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from logitcask_consumer.head.softmax import Entries, Rest, TritonPassesError, eager_rest_, flattened
from logitcask_consumer.losses.student_rows import Leaves, Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget

Passes: TypeAlias = Literal["auto", "eager", "triton"]
"""How the passes over [rows, vocabulary] are made; see `dense_passes`."""

_PASSES: ContextVar[Passes] = ContextVar("dense_passes", default="eager")


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseRows:
    """A block of rows after its reductions."""

    rest: Rest
    leaves: Leaves
    entries: Entries
    rest_is_tail: bool

    def student(self, target: SparseTarget) -> StudentRows:
        """What a formula reads."""
        return StudentRows(self.leaves, target, rest_is_tail=self.rest_is_tail)


@contextmanager
def dense_passes(passes: Passes) -> Iterator[None]:
    """Choose how the passes are made, within the block and this thread.

    Args:
        passes: `eager` (the default outside) takes torch's operators; `auto` takes Triton for float32 and float64 on
            CUDA where it is installed, and the operators for everything else; `triton` never takes the operators, and
            raises `TritonPassesError` where it cannot serve.

    Raises:
        ValueError: there are no such passes.
    """
    if passes not in get_args(Passes):
        raise ValueError(f"passes are one of {', '.join(get_args(Passes))}, got {passes!r}")
    token = _PASSES.set(passes)
    try:
        yield
    finally:
        _PASSES.reset(token)


def reduce_(logits_RV: Tensor, target: SparseTarget, needs: Needs, *, with_grad: bool) -> DenseRows:
    """Reductions of a block of logits; overwrites them.

    Args:
        logits_RV: float32 or float64. Rows may be strided; the operators then work on a copy.
        target: the rows' entries.
        needs: what the formulas read.
        with_grad: make the leaves require gradients.
    """
    takes_triton = _takes_triton(logits_RV)
    if logits_RV.stride(1) != 1 or not (takes_triton or logits_RV.is_contiguous()):
        logits_RV = logits_RV.contiguous()
    rows, width = logits_RV.shape
    stride = logits_RV.stride(0)
    entries = Entries(
        rows=(target.head_rows_H, target.tail_rows_N, slice(None)),
        at=(
            target.head_rows_H * stride + target.head_ids_H,
            target.tail_rows_N * stride + target.tail_ids_N,
            torch.arange(rows, device=logits_RV.device) * stride + target.next_ids_R,
        ),
    )
    exponents, may_be_empty = tuple(sorted(needs.powers)), needs.tail and target.covers(width)
    if takes_triton:
        # Imported here: Triton is optional, and takes a second.
        from logitcask_consumer.head.triton_passes import triton_rest_

        rest: Rest = triton_rest_(logits_RV, entries, exponents, outside_heads=needs.tail, may_be_empty=may_be_empty)
    else:
        rest = eager_rest_(logits_RV, entries, exponents, outside_heads=needs.tail, may_be_empty=may_be_empty)
    rest_lse_R = torch.zeros(rows, dtype=logits_RV.dtype, device=logits_RV.device)
    if rest.empty_R is not None:
        rest_lse_R = rest_lse_R.masked_fill(rest.empty_R, -torch.inf)
    head_H, tail_N, next_R = rest.entry_logits
    leaves = Leaves(
        head_logits_H=head_H,
        tail_logits_N=tail_N,
        next_logits_R=next_R,
        rest_lse_R=rest_lse_R,
        rest_powers=rest.log_powers,
    )
    if with_grad:
        for leaf in leaves.tensors():
            leaf.requires_grad_()
    return DenseRows(rest=rest, leaves=leaves, entries=entries, rest_is_tail=needs.tail)


def gradient_(rows: DenseRows, total: Tensor) -> Tensor:
    """The gradient of a scalar formula of the leaves for the logits, [R, V]; overwrites the buffer.

    Args:
        rows: the block.
        total: the scalar, a function of `rows.leaves`.
    """
    leaves, rest = rows.leaves, rows.rest
    gradients = iter(torch.autograd.grad(total, leaves.tensors(), allow_unused=True, materialize_grads=True))
    at_entries, grad_lse_R = [next(gradients) for _ in rows.entries.at], next(gradients)
    rest.gradient_(grad_lse_R, dict(zip(leaves.rest_powers, gradients, strict=True)))
    flat = flattened(rest.buffer_RV)
    for at, grad in zip(rows.entries.at, at_entries, strict=True):
        flat.index_add_(0, at, grad)
    return rest.buffer_RV


def _takes_triton(logits_RV: Tensor) -> bool:
    """Whether Triton makes the passes, by the rule of `dense_passes`."""
    passes = _PASSES.get()
    if passes == "triton" and not _has_triton():
        raise TritonPassesError(
            "dense_passes('triton') needs Triton, which is not installed: pip install triton, "
            "or leave the choice to dense_passes('auto')"
        )
    if passes != "auto":
        return passes == "triton"
    return logits_RV.is_cuda and logits_RV.dtype in (torch.float32, torch.float64) and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
