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

from logitcask_consumer.losses import LMHead, SparseTarget, Terms, base_model, distillation_loss
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
        hidden_BSD = base_model(model)(*args, use_cache=False, **kwargs).last_hidden_state
        hidden_TD = hidden_BSD.flatten(0, 1).index_select(0, distill.slots_T)
        return layer(hidden_TD, distill=distill, sequences_T=distill.slots_T // hidden_BSD.shape[1])

    def head_forward(*args: Any, distill: DistillTask | None = None, **kwargs: Any) -> Any:
        if distill is None:
            return plain_head(*args, **kwargs)
        return _losses(LMHead.from_model(model), distill, *args, **kwargs)

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
    """Prove that the student keeps packed documents apart by position ids, on two short documents.

    The second document's hidden states, with the first packed before it, must be those it has alone. What is tolerated
    is a share of the change that one long document of both would make, so that a fresh model, whose attention hardly
    does anything yet, is held to the same standard.

    Raises:
        ModelError: they are not.
    """
    was_training = model.training
    model.eval()
    body, weight = base_model(model), model.get_output_embeddings().weight
    ids_1S = torch.arange(3, 19, device=weight.device).remainder(weight.shape[0])[None]
    split, whole = 7, torch.arange(ids_1S.shape[1], device=weight.device)
    packed = torch.cat([whole[:split], whole[:-split]])

    def second(ids: Tensor, position_ids: Tensor) -> Tensor:
        out = body(input_ids=ids, position_ids=position_ids[None], use_cache=False).last_hidden_state[0]
        return torch.as_tensor(out[-(ids_1S.shape[1] - split) :], dtype=torch.float64)

    alone_SD = second(ids_1S[:, split:], whole[:-split])
    error = float((second(ids_1S, packed) - alone_SD).abs().max())
    mixed = float((second(ids_1S, whole) - alone_SD).abs().max())
    model.train(was_training)
    rounding = 16.0 * torch.finfo(weight.dtype).eps * float(alone_SD.abs().max())
    if not error <= max(tolerance * mixed, rounding):
        raise ModelError(
            f"{type(model).__name__} does not keep packed documents apart: packing another one before it changes the "
            f"hidden states of a document by up to {error:.2g}; joining both into one document changes them by "
            f"{mixed:.2g}. Train it with --packing none"
        )
