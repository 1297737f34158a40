"""Tail-aware distillation: the tail's shape weighs the same in sure and in doubtful sequences."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcask_consumer.losses.loss import Estimator, Loss, Requires, in_range, register
from logitcask_consumer.losses.student_rows import Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget


@register
@dataclass(frozen=True, kw_only=True)
class TailAware(Loss):
    """KL(head and tail bucket) + w r KL(tail || tail'), with w = beta / (mean of r over the document).

    From the record, with s the student's mass outside the head::

        -sum_H t_j log p_j - w (r / n) sum_draws log p_j - (1 - w) r log s

    `forward_kl:tail_weight` with a weight per document; the minimum stays at p = t. TAD, arXiv 2602.20816 (beta = 2
    with a head of 10).

    Estimator: unbiased for the sum above, up to a constant; its value is not a KL divergence. The mean is over
    the document's positions in the batch, which are all of them unless the document was cut into windows. Units: nats.
    """

    name: ClassVar[str] = "tail_aware"
    estimator: ClassVar[Estimator] = "unbiased"
    needs: ClassVar[Needs] = Needs(tail=True)
    requires: ClassVar[Requires] = Requires(draws=True)
    beta: float = 2.0
    largest: float = 10.0
    """Most that w may be: a document whose tail has no mass would ask for any."""

    def __post_init__(self) -> None:
        """Check both."""
        in_range(self, "beta", 0.0, 100.0)
        in_range(self, "largest", 0.0, 1e6)

    def row_scale(self, target: SparseTarget) -> Tensor:
        """The factor w of each row, [R]."""
        if target.documents_R is None:
            raise LookupError("tail_aware averages over documents: make the target with documents_R")
        _, of_row_R = torch.unique(target.documents_R, return_inverse=True)
        rows_D = torch.bincount(of_row_R).to(target.tail_mass_R.dtype)
        mean_D = torch.zeros_like(rows_D).index_add_(0, of_row_R, target.tail_mass_R) / rows_D
        return (self.beta / mean_D.clamp(min=torch.finfo(mean_D.dtype).tiny)).clamp(max=self.largest)[of_row_R]

    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The weighted sum over head, draws and tail bucket, per row, [R]."""
        assert scale_R is not None
        on_head_R = target.head_sum(target.head_weights_H * student.head_logprobs_H)
        on_draws_R = target.tail_sum(target.tail_weights_N * student.tail_logprobs_N)
        return -on_head_R - scale_R * on_draws_R - (1.0 - scale_R) * target.tail_mass_R * student.log_tail_R
