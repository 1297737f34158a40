"""The loss of a batch, position by position on the records' token ids, and the sums that its metrics are made of.

Shape legend: T trained positions, K terms of the mix, L hint losses, C columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from logitcask_consumer.data import Batch
from logitcask_consumer.hints import HintLoss
from logitcask_consumer.hints.bound import HintsOnStudent
from logitcask_consumer.hints.dense import DenseTeacher
from logitcask_consumer.methods.method import BatchValue
from logitcask_consumer.methods.sparse_target_loss import SparseTargetLoss
from logitcask_consumer.student.router_loss import with_router_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatchLoss:
    """`TokenMethod` on a student and a dataset, a `BatchLoss`.

    Its sums: each term, each hint loss, cross-entropy and the teacher's entropy times the positions' weights, the
    weights, the trained positions, and those read.
    """

    loss: SparseTargetLoss
    collator: Callable[[Any], Batch]
    hints: HintsOnStudent | None = None
    dense: DenseTeacher | None = None

    def counted(self, batch: Batch) -> Tensor:
        """Sum of the weights of the trained positions."""
        return self.loss.counted(batch)

    def value(self, model: Any, batch: Batch, progress: float) -> BatchValue:
        """The loss of the trained positions, and the sums of its terms, cross-entropy and entropy."""
        task = self.loss.task(batch, progress)
        if self.dense is not None:
            task = replace(task, dense=self.dense.target(batch))
        if self.hints is not None:
            task = replace(task, states=self.hints.task(batch["hints"], batch["documents"], progress))
        out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        hints_LT = [out["states_LT"]] if self.hints is not None else []
        columns = [out["terms_KT"], *hints_LT, torch.stack([out["ce_T"], out["entropy_T"].to(out["ce_T"].dtype)])]
        columns_CT = torch.cat([column.to(torch.float64) for column in columns])
        if out["weights_T"] is not None:
            weights_T = out["weights_T"].to(torch.float64)
            columns_CT, weight = columns_CT * weights_T, weights_T.sum()
        else:
            weight = columns_CT.new_tensor(columns_CT.shape[1])
        counts = columns_CT.new_tensor([columns_CT.shape[1], batch["positions"]])
        loss = with_router_loss(out, self.counted(batch))
        return BatchValue(loss=loss, sums=torch.cat([columns_CT.sum(1), weight[None], counts]))

    @property
    def num_sums(self) -> int:
        """Terms, hint losses, cross-entropy, entropy, weights, trained positions, and those read."""
        return len(self.loss.objective.losses) + len(self._hint_losses) + 5

    @property
    def _hint_losses(self) -> tuple[HintLoss, ...]:
        return () if self.hints is None else self.hints.losses

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Weighted means; `kd` is the first loss of a mix, which has no value of its own that means anything.

        Hint losses are `hint/SPEC`, without their weights.
        """
        *columns, ce, entropy, weight, trained, positions = sums
        terms, hints = columns[: len(self.loss.objective.losses)], columns[len(self.loss.objective.losses) :]
        weight = weight or 1.0
        name = "teacher_entropy" if self.loss.exact_entropy else "teacher_entropy_at_least"
        means = {"kd": terms[0] / weight, "ce": ce / weight, name: entropy / weight}
        for loss, value in zip(self.loss.objective.losses, terms, strict=True):
            if len(terms) > 1:
                means[f"loss/{loss.spec}"] = value / weight
            if loss.kl_value:
                means["kl"] = (value - entropy) / weight
        for hint, value in zip(self._hint_losses, hints, strict=True):
            means[f"hint/{hint.spec}"] = value / weight
        means["positions"] = trained
        if self.loss.weights:
            means["trained_share"] = trained / max(positions, 1.0)
        return means

    def read(self, sums: Sequence[float]) -> float:
        """All positions, with those of weight 0."""
        return sums[-1]
