"""A mix of losses through the LM head in blocks of rows: [rows, vocab] exists for one block at a time.

Shape legend: T trained positions of a batch, D hidden size, V vocabulary size, R rows of a block, K terms of the mix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TypeAlias

import torch
from torch import Tensor

from logitcask_consumer.head.dense import gradient_, reduce_
from logitcask_consumer.head.dense_target import DenseTarget
from logitcask_consumer.head.fused_head import ShapeError, fused_head, rows_of, wide_dtype
from logitcask_consumer.head.lm_head import LMHead
from logitcask_consumer.losses.loss import Loss, Terms
from logitcask_consumer.losses.target import SparseTarget


@dataclass(frozen=True, slots=True)
class Scales:
    """Per term its factor per row, or None; see `Loss.row_scale`."""

    of_terms: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, terms: Sequence[tuple[float, Loss]], target: SparseTarget | DenseTarget) -> "Scales":
        """Ask every term; a factor speaks of the records' tails, which a whole distribution has not."""
        if isinstance(target, DenseTarget):
            return cls((None,) * len(terms))
        return cls(tuple(loss.row_scale(target) for _, loss in terms))

    def rows(self, rows: slice) -> "Scales":
        """Those of some rows."""
        return Scales(tuple(None if scale is None else scale[rows] for scale in self.of_terms))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlockResult:
    """Of R rows; `grad_RV` is None where no gradient was asked for or no term depends on the student."""

    total: Tensor
    terms_KR: Tensor
    ce_R: Tensor
    grad_RV: Tensor | None


def before_weights(loss: Loss, target: SparseTarget | DenseTarget) -> Tensor | None:
    """How much more likely the student than the sampling wrote what stands before each row, [R]; None for 1 everywhere.

    A loss that reads `policy_R4` itself has its own weights within.
    """
    if isinstance(target, DenseTarget) or target.policy_R4 is None or loss.requires.samples:
        return None
    return target.policy_R4[:, 3]


def row_block_gradient(
    logits_RV: Tensor,
    target: SparseTarget,
    terms: Sequence[tuple[float, Loss]],
    scales: Scales,
    *,
    weights_R: Tensor | None,
    with_grad: bool,
) -> RowBlockResult:
    """Values and gradient of a block of rows; overwrites the logits.

    Args:
        logits_RV: float32 or float64 logits of the student.
        target: R rows of the teacher.
        terms: losses and their weights.
        scales: the terms' factors for these rows.
        weights_R: weight of each row; None for 1.
        with_grad: make the gradient of the weighted sum.
    """
    temperatures = sorted({loss.temperature for _, loss in terms}, key=lambda t: (t != 1.0, t))
    values: list[Tensor] = [logits_RV.new_zeros(0)] * len(terms)
    total, ce_R, grad_RV = logits_RV.new_zeros(()), None, None
    sources = [logits_RV.clone() for _ in temperatures[1:]]
    for temperature, source_RV in zip(temperatures, [logits_RV, *sources], strict=True):
        at = [k for k, (_, loss) in enumerate(terms) if loss.temperature == temperature]
        if temperature != 1.0:
            if ce_R is None:
                ce_R = torch.logsumexp(source_RV, -1) - source_RV.gather(1, target.next_ids_R[:, None])[:, 0]
            source_RV.div_(temperature)
        needs = reduce(or_, (terms[k][1].needs for k in at))
        rows = reduce_(source_RV, target, needs, with_grad=with_grad)
        with torch.set_grad_enabled(with_grad):
            student, part = rows.student(target), logits_RV.new_zeros(())
            for k in at:
                weight, loss = terms[k]
                value_R = loss.per_row(student, target, scales.of_terms[k])
                if (before_R := before_weights(loss, target)) is not None:
                    value_R = value_R * before_R
                values[k] = value_R.detach()
                part = part + weight * (value_R if weights_R is None else value_R * weights_R).sum()
        if ce_R is None:
            ce_R = -student.next_logprobs_R.detach()
        total += part.detach()
        if part.requires_grad:
            part_grad_RV = gradient_(rows, part)
            if temperature != 1.0:
                part_grad_RV.div_(temperature)
            grad_RV = part_grad_RV if grad_RV is None else grad_RV.add_(part_grad_RV)
    assert ce_R is not None
    return RowBlockResult(total=total, terms_KR=torch.stack(values), ce_R=ce_R, grad_RV=grad_RV)


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
    target: SparseTarget | DenseTarget,
    terms: Terms,
    *,
    weights_T: Tensor | None = None,
    block_rows: int | None = None,
) -> LossResult:
    """Apply the LM head and a mix of losses to the hidden states of T positions, summed over them.

    Args:
        hidden_TD: last hidden states of the trained positions, any floating dtype.
        head: weight, bias and logit transform.
        target: T rows of the teacher's target, row i for hidden state i.
        terms: K losses with their weights.
        weights_T: weight of each position; None for 1. Leave positions of weight 0 out: they cost as much as others.
        block_rows: rows of logits held at a time; None chooses what fits the device, see `default_rows`; fewer of a
            `DenseTarget`.

    Raises:
        ShapeError: rows, hidden size or vocabulary do not fit, or there is no term.

    Within `torch.compile` it is one graph break and runs as it is.
    """
    if torch.compiler.is_compiling():
        # Traced, it would fall into dozens of graphs between its loops and offsets.
        apart: _Plain = torch.compiler.disable(_distillation_loss)  # type: ignore[no-untyped-call]
        return apart(hidden_TD, head, target, terms, weights_T, block_rows)
    return _distillation_loss(hidden_TD, head, target, terms, weights_T, block_rows)


_Plain: TypeAlias = Callable[[Tensor, LMHead, SparseTarget | DenseTarget, Terms, Tensor | None, int | None], LossResult]


def _distillation_loss(
    hidden_TD: Tensor,
    head: LMHead,
    target: SparseTarget | DenseTarget,
    terms: Terms,
    weights_T: Tensor | None,
    block_rows: int | None,
) -> LossResult:
    """`distillation_loss`, outside of compilation."""
    _check(hidden_TD, head, target, terms, weights_T)
    if block_rows is None and isinstance(target, DenseTarget):
        block_rows = target.block_rows
    rows = rows_of(block_rows, head)
    count, wide = len(hidden_TD), wide_dtype(hidden_TD)
    target = target.to_dtype(wide)
    mix = _Mix(
        target=target,
        terms=terms,
        scales=Scales.of(terms, target),
        weights_T=None if weights_T is None else weights_T.to(wide),
        terms_KT=hidden_TD.new_empty((len(terms), count), dtype=wide),
        ce_T=hidden_TD.new_empty(count, dtype=wide),
    )
    spans = [(start, min(start + rows, count)) for start in range(0, count, rows)]
    return LossResult(loss=fused_head(hidden_TD, head, spans, mix), terms_KT=mix.terms_KT, ce_T=mix.ce_T)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mix:
    """The loss of a block of rows; notes each term and the cross-entropy of every row."""

    target: SparseTarget | DenseTarget
    terms: Terms
    scales: Scales
    weights_T: Tensor | None
    terms_KT: Tensor
    ce_T: Tensor

    def __call__(self, logits_RV: Tensor, start: int, stop: int, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        block = slice(start, stop)
        done = row_block_gradient(
            logits_RV,
            self.target.rows(start, stop),
            self.terms,
            self.scales.rows(block),
            weights_R=None if self.weights_T is None else self.weights_T[block],
            with_grad=with_grad,
        )
        self.terms_KT[:, block], self.ce_T[block] = done.terms_KR, done.ce_R
        return done.total, done.grad_RV


def _check(
    hidden_TD: Tensor, head: LMHead, target: SparseTarget | DenseTarget, terms: Terms, weights_T: Tensor | None
) -> None:
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
