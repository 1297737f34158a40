"""Means of a student over held-out positions while it trains: the report's figures, through the student's own forward.

Shape legend: T positions of a batch, D hidden size, R rows of a block, V vocabulary size, M figures.

What the report measures with a model of its own (`report.evaluate`) is measured here within the student's forward call,
as its training loss is, so that students on several processes, spread over them or not, are measured where they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from logitcask_consumer.data import Batch, CaskDataset, Collator, target_of
from logitcask_consumer.data.vocabulary import ExtraIds, StudentVocabulary
from logitcask_consumer.head import LMHead
from logitcask_consumer.head.fused_head import rows_of
from logitcask_consumer.held_out.estimates import kl_estimate, kl_of_buckets
from logitcask_consumer.losses import SparseTarget
from logitcask_consumer.methods import BatchValue
from logitcask_schemas.record.capture_spec import CaptureSpec

UNBIASED: Final = "kl"
"""Of records whose tail was sampled."""
BOUND: Final = "kl_bound"
"""Of those that keep the k largest only."""


def kl_name(capture: CaptureSpec) -> str:
    """The figure that students are compared by: the KL, or what it is at least where records cannot tell it."""
    return BOUND if capture.mode == "topk" else UNBIASED


def figure_names(capture: CaptureSpec) -> tuple[str, ...]:
    """What is measured on such records; the KL is the first."""
    ordered_head = capture.mode != "sampled"
    return (kl_name(capture), "nll", *(["agreement"] if ordered_head else []))


def figures_of_rows(logits_RV: Tensor, target: SparseTarget, names: Sequence[str]) -> dict[str, Tensor]:
    """Some of what `report.evaluate.measure` gives, by the same formulas, each [R].

    Args:
        logits_RV: student logits, float32; overwritten.
        target: R rows, with the entropy, and log t of the draws where the records have it.
        names: of `figure_names`.
    """
    width, flat = logits_RV.shape[1], logits_RV.view(-1)
    rows_R = torch.arange(target.num_rows, device=logits_RV.device)
    head_at_H = target.head_rows_H * width + target.head_ids_H
    log_z_R = torch.logsumexp(logits_RV, -1)
    head_logp_H = flat[head_at_H] - log_z_R[target.head_rows_H]
    figures = {"nll": log_z_R - flat[rows_R * width + target.next_ids_R]}
    if "agreement" in names:
        first_at_R = torch.from_numpy(target.head_offsets_R1[:-1]).to(logits_RV.device)
        figures["agreement"] = (target.head_ids_H[first_at_R] == logits_RV.argmax(-1)).to(log_z_R.dtype)
    if UNBIASED in names:
        assert target.entropy_R is not None, "every record has its entropy"
        tail_logp_N = flat[target.tail_rows_N * width + target.tail_ids_N] - log_z_R[target.tail_rows_N]
        figures[UNBIASED] = kl_estimate(
            target, head_logp_H, tail_logp_N, entropy_R=target.entropy_R, tail_logprobs_N=target.tail_logprobs_N
        )
    if BOUND in names:
        flat[head_at_H] = -torch.inf
        figures[BOUND] = kl_of_buckets(target, head_logp_H, (torch.logsumexp(logits_RV, -1) - log_z_R).exp())
    return {name: figures[name] for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class FiguresTask:
    """What the LM head needs to yield sums of figures over T positions; a `HeadTask`."""

    target: SparseTarget
    slots_T: Tensor
    """Flat index b·S + s of each position, int64."""
    names: tuple[str, ...]
    width: int | None = None
    """Ids of the student's distribution, where it ends before those of the head."""
    block_rows: int | None = None
    """Rows of logits held at a time; None chooses what fits the device."""
    states: None = None

    def at_head(self, hidden_TD: Tensor, head: LMHead, sequences_T: Tensor) -> dict[str, Tensor | None]:
        """The sum of each figure, float64 [M], as `sums_M`; the first of them as `loss`."""
        del sequences_T
        head = head.narrowed(self.width)
        rows = rows_of(self.block_rows, head)
        sums_M = torch.zeros(len(self.names), dtype=torch.float64, device=hidden_TD.device)
        for start in range(0, len(hidden_TD), rows):
            stop = min(start + rows, len(hidden_TD))
            logits_RV = head.logits(hidden_TD[start:stop]).float()
            figures = figures_of_rows(logits_RV, self.target.rows(start, stop), self.names)
            sums_M += torch.stack([figures[name].sum(dtype=torch.float64) for name in self.names])
        return {"loss": sums_M[0], "sums_M": sums_M, "weights_T": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutFigures:
    """Figures of a student on a dataset, a `BatchLoss`. Its sums: each figure, and the positions."""

    collator: Callable[[Any], Batch]
    names: tuple[str, ...]
    sampled_tail: bool
    width: int | None
    block_rows: int | None

    def counted(self, batch: Batch) -> Tensor:
        """Positions of the batch."""
        return torch.tensor(float(len(batch["slots"])), dtype=torch.float64)

    def value(self, model: Any, batch: Batch, progress: float) -> BatchValue:
        """The figures' sums; the first of them stands in for a loss."""
        del progress
        task = FiguresTask(
            target=target_of(batch, sampled_tail=self.sampled_tail),
            slots_T=batch["slots"],
            names=self.names,
            width=self.width,
            block_rows=self.block_rows,
        )
        out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        sums_M = out["sums_M"]
        return BatchValue(loss=out["loss"], sums=torch.cat([sums_M, sums_M.new_tensor([len(batch["slots"])])]))

    @property
    def num_sums(self) -> int:
        """The figures, and the positions."""
        return len(self.names) + 1

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Mean of each figure over the positions, and how many these are."""
        *figures, positions = sums
        means = {name: figure / max(positions, 1.0) for name, figure in zip(self.names, figures, strict=True)}
        return means | {"positions": positions}

    def read(self, sums: Sequence[float]) -> float:
        """All positions."""
        return sums[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutEvaluator:
    """Measures students on held-out documents, an `Evaluator`."""

    extra_ids: ExtraIds = "keep"
    """What becomes of a student's ids beyond the teacher's, as in its training."""
    block_rows: int | None = None

    def on(self, model: Any, dataset: CaskDataset) -> HeldOutFigures:
        """The figures of a student, whose forward `student.forward.attach` has prepared, on a dataset."""
        capture = dataset.manifest.capture
        vocabulary = StudentVocabulary.of(model, dataset.manifest.teacher.vocab_size)
        return HeldOutFigures(
            collator=Collator(seq_len=dataset.seq_len, vocabulary=vocabulary),
            names=figure_names(capture),
            sampled_tail=capture.mode != "topk",
            width=vocabulary.masked_width(self.extra_ids),
            block_rows=self.block_rows,
        )
