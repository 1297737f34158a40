"""The student's forward pass with the loss inside it, so that every wrapper sees one ordinary forward call.

Shape legend: B sequences, S slots, T trained positions, D hidden size.

DDP, FSDP and autocast all hook the call of the outermost module. A loss that reached past them into the body and the
head would lose gradient synchronisation and parameter gathering; so the model itself gets a forward that, given
targets, runs its body, applies the head in chunks and returns losses. Without targets it is the model's own forward.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logitcask_consumer.losses import LMHead, SparseTarget, Terms, distillation_loss
from logitcask_consumer.packed_forward import can_mask, hidden_states, mask_packed_documents
from logitcask_consumer.weights import EntropyTop, take_target
from logitcask_schemas.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillTask:
    """What the forward pass needs to yield a loss."""

    target: SparseTarget
    slots_T: Tensor
    """Flat index b·S + s of each trained position, int64."""
    terms: Terms
    """Losses and their weights."""
    weights_T: Tensor | None = None
    """Weight of each position; None for 1."""
    selection: EntropyTop | None = None
    """Which of the positions are trained, by the student's entropy; None for all."""
    chunk_rows: int | None = None
    width: int | None = None
    """Ids of the student's distribution, where it ends before those of the head; see `vocabulary`."""


def attach(model: Any) -> None:
    """Give a causal LM the forward that understands a `DistillTask` as `distill=`; all else is passed on.

    Its output embedding gets one too: what the head does with a task it does within its own call, so that a head that
    is sharded apart from the body (FSDP2) is gathered for it and its gradient scattered.
    """
    layer = model.get_output_embeddings()
    plain, plain_head = model.forward, layer.forward

    def forward(*args: Any, distill: DistillTask | None = None, **kwargs: Any) -> Any:
        if distill is None:
            return plain(*args, **kwargs)
        assert not args, "input_ids and position_ids are given by name"
        hidden_BSD = hidden_states(model, **kwargs)
        hidden_TD = hidden_BSD.flatten(0, 1).index_select(0, distill.slots_T)
        return layer(hidden_TD, distill=distill, sequences_T=distill.slots_T // hidden_BSD.shape[1])

    def head_forward(*args: Any, distill: DistillTask | None = None, **kwargs: Any) -> Any:
        if distill is None:
            return plain_head(*args, **kwargs)
        return _losses(LMHead.from_model(model).narrowed(distill.width), distill, *args, **kwargs)

    model.forward, layer.forward = forward, head_forward


def _losses(head: LMHead, task: DistillTask, hidden_TD: Tensor, *, sequences_T: Tensor) -> dict[str, Tensor | None]:
    """Loss, and the values of the trained positions."""
    target, weights_T = task.target, task.weights_T
    if task.selection is not None:
        rows = task.selection.choose(hidden_TD, head, sequences_T, task.chunk_rows)
        hidden_TD, target = hidden_TD.index_select(0, rows), take_target(target, rows)
        weights_T = None if weights_T is None else weights_T.index_select(0, rows)
    result = distillation_loss(hidden_TD, head, target, task.terms, weights_T=weights_T, chunk_rows=task.chunk_rows)
    return {
        "loss": result.loss,
        "terms_KT": result.terms_KT,
        "ce_T": result.ce_T,
        "entropy_T": target.entropy_R,
        "weights_T": weights_T,
    }


@torch.no_grad()
def check_packing(model: Any, *, tolerance: float = 0.02) -> None:
    """Prove that the student keeps packed documents apart, on two sequences of two short documents each.

    Every document's hidden states must be those it has alone. What is tolerated is a share of the change that joining
    the documents of a sequence would make, so that a fresh model, whose attention hardly does anything yet, is held to
    the same standard. Two sequences, cut at different places: some attention keeps documents apart in one only.

    A body that makes its mask without position ids is given masks from here on, where it can take them.

    Raises:
        ModelError: it does not.
    """
    was_training = model.training
    model.eval()
    try:
        gap = _Gap.of(model)
        if not gap.is_closed(tolerance) and _takes_masks(model, tolerance):
            return
    finally:
        model.train(was_training)
    if not gap.is_closed(tolerance):
        raise ModelError(
            f"{type(model).__name__} does not keep packed documents apart: packing documents into sequences changes "
            f"their hidden states by up to {gap.packed:.2g}; joining them into one document changes them by "
            f"{gap.joined:.2g}. Train it with --packing none"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gap:
    """How far hidden states of documents are from those they have alone."""

    packed: float
    """In sequences of several documents."""
    joined: float
    """Of a sequence's second document, where the first is its beginning."""
    rounding: float
    alone: Tensor
    """Hidden states of the documents alone, end to end."""

    @classmethod
    def of(cls, model: Any) -> "_Gap":
        weight = model.get_output_embeddings().weight
        slots_S, cuts = torch.arange(16, device=weight.device), (7, 11)
        ids_BS = torch.arange(3, 35, device=weight.device).remainder(weight.shape[0]).view(2, 16)
        positions_BS = torch.stack([torch.cat([slots_S[:cut], slots_S[:-cut]]) for cut in cuts])
        packed, joined = (
            hidden_states(model, ids_BS, positions).to(torch.float64)
            for positions in (positions_BS, slots_S.expand(2, -1))
        )
        alone = torch.stack(
            [
                torch.cat(
                    [
                        hidden_states(model, ids_1L, slots_S[None, : ids_1L.shape[1]])[0].to(torch.float64)
                        for ids_1L in (row[None, :cut], row[None, cut:])
                    ]
                )
                for row, cut in zip(ids_BS, cuts, strict=True)
            ]
        )
        return cls(
            packed=float((packed - alone).abs().max()),
            joined=float((joined - alone).abs().max()),
            rounding=16.0 * torch.finfo(weight.dtype).eps * float(alone.abs().max()),
            alone=alone,
        )

    def is_closed(self, tolerance: float) -> bool:
        """Whether packing changes no more than rounding, or a small share of what joining does."""
        return self.packed <= max(tolerance * self.joined, self.rounding)


def _takes_masks(model: Any, tolerance: float) -> bool:
    """Whether masks keep the documents apart, and change nothing of a document alone; they stay chosen if so."""
    if not can_mask(model):
        return False
    plain = _Gap.of(model)
    mask_packed_documents(model, True)
    try:
        masked = _Gap.of(model)
        taken = masked.is_closed(tolerance) and float((masked.alone - plain.alone).abs().max()) <= plain.rounding
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        taken = False  # it takes no such masks: documents are not kept apart
    if not taken:
        mask_packed_documents(model, False)
    return taken
