"""One chunk: values of all terms of a mix, and the gradient of their weighted sum for the logits.

Shape legend: K terms, T positions of the batch, R rows of a chunk, V vocabulary size.

Terms that read the student's softmax at one temperature share its reductions and its gradient pass; each further
temperature takes a copy of the chunk's logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from logitcask_consumer.losses.dense import gradient_, reduce_
from logitcask_consumer.losses.loss import Loss
from logitcask_consumer.losses.target import SparseTarget


@dataclass(frozen=True, slots=True)
class Scales:
    """Per term its factor per row, or None; see `Loss.row_scale`."""

    of_terms: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, terms: Sequence[tuple[float, Loss]], target: SparseTarget) -> "Scales":
        """Ask every term."""
        return cls(tuple(loss.row_scale(target) for _, loss in terms))

    def rows(self, rows: slice) -> "Scales":
        """Those of some rows."""
        return Scales(tuple(None if scale is None else scale[rows] for scale in self.of_terms))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """Of R rows; `grad_RV` is None where no gradient was asked for or no term depends on the student."""

    total: Tensor
    terms_KR: Tensor
    ce_R: Tensor
    grad_RV: Tensor | None


def chunk_gradient(
    logits_RV: Tensor,
    target: SparseTarget,
    terms: Sequence[tuple[float, Loss]],
    scales: Scales,
    *,
    weights_R: Tensor | None,
    with_grad: bool,
) -> ChunkResult:
    """Values and gradient of a chunk; overwrites the logits.

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
                values[k] = value_R.detach()
                part = part + weight * (value_R if weights_R is None else value_R * weights_R).sum()
        if ce_R is None:
            ce_R = -student.next_logprobs_R.detach()
        total += part.detach()
        if part.requires_grad:
            found_RV = gradient_(rows, part)
            if temperature != 1.0:
                found_RV.div_(temperature)
            grad_RV = found_RV if grad_RV is None else grad_RV.add_(found_RV)
    assert ce_R is not None
    return ChunkResult(total=total, terms_KR=torch.stack(values), ce_R=ce_R, grad_RV=grad_RV)
