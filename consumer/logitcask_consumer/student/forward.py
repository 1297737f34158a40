"""The student's forward pass with the loss inside it, so that every wrapper sees one ordinary forward call.

Shape legend: B sequences, S slots, T rows that carry loss, D hidden size.

DDP, FSDP and autocast all hook the call of the outermost module. A loss that reached past them into the body and the
head would lose gradient synchronisation and parameter gathering; so the model itself gets a forward that, given
a task, runs its body, applies the head in blocks of rows and returns losses. Without one it is the model's own forward.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from logitcask_consumer.head import LMHead, base_model
from logitcask_consumer.student.layer_states import NotedStates, StatePlace, blocks_of, noted_states
from logitcask_consumer.student.router_loss import RouterLoss
from logitcask_schemas.errors import ModelError

_MASKED = "logitcask_masks_packed_documents"
"""Attribute of a body that is given masks."""


def hidden_states(model: Any, input_ids: Tensor, position_ids: Tensor, **more: Any) -> Tensor:
    """Last hidden states of a causal LM's body, [B, S, D].

    Args:
        model: a transformers causal LM, perhaps with adapters.
        input_ids: int64 [B, S].
        position_ids: int64 [B, S]; 0 begins a document.
        more: passed on to the body.
    """
    hidden_BSD: Tensor = _body_output(model, input_ids, position_ids, **more).last_hidden_state
    return hidden_BSD


def _body_output(model: Any, input_ids: Tensor, position_ids: Tensor, **more: Any) -> Any:
    """What a causal LM's body yields, by name; see `hidden_states`."""
    body: Any = base_model(model)
    if uses_flash(body):
        more = {**document_boundaries(position_ids), **more}
    elif getattr(body, _MASKED, False):
        more = {"attention_mask": document_masks(body, input_ids, position_ids), **more}
    return body(input_ids=input_ids, position_ids=position_ids, use_cache=False, **more)


def uses_flash(body: Any) -> bool:
    """Whether a body's attention is one of the FlashAttention kernels."""
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

    chosen = str(getattr(body.config, "_attn_implementation", ""))
    versions = tuple(f"flash_attention_{version}" for version in FLASH_ATTENTION_COMPATIBILITY_MATRIX)
    return chosen.startswith(versions) or ("/" in chosen and "flash" in chosen)


def document_boundaries(position_ids: Tensor) -> dict[str, Any]:
    """Where documents begin over all B · S slots, as transformers names it: int32 [N + 1], and the longest."""
    flat = position_ids.flatten()
    starts_N = torch.nonzero(flat == 0).flatten()
    if not len(starts_N) or starts_N[0] != 0:
        raise ValueError("the first position id of a packed batch is not 0: no document begins there")
    edges_N1 = torch.cat([starts_N, starts_N.new_tensor([len(flat)])]).to(torch.int32)
    longest = int(torch.diff(edges_N1).max())
    return {
        "cu_seq_lens_q": edges_N1,
        "cu_seq_lens_k": edges_N1,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def mask_packed_documents(model: Any, masked: bool) -> None:
    """Choose whether `hidden_states` gives the body masks; `check_packing` finds out what it needs."""
    setattr(base_model(model), _MASKED, masked)


def can_mask(model: Any) -> bool:
    """Whether `document_masks` knows all kinds of attention that a body's config names, and it takes a mask at all."""
    body: Any = base_model(model)
    kinds = set(getattr(body.config, "layer_types", None) or ["full_attention"])
    plain = kinds <= {"full_attention", "sliding_attention"}
    slides = bool(getattr(body.config, "sliding_window", None)) and "sliding_attention" not in kinds
    return plain and not slides and not uses_flash(body)


def document_masks(body: Any, input_ids: Tensor, position_ids: Tensor) -> Any:
    """Causal masks, [B, 1, S, S], in which no document sees another; one for each kind of layer."""
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    config = body.config
    weight = body.get_input_embeddings().weight
    embeds_BS0 = torch.empty((*input_ids.shape, 0), dtype=weight.dtype, device=input_ids.device)
    # The cache's argument has been renamed between versions of transformers.
    names = inspect.signature(create_causal_mask).parameters
    no_cache: dict[str, Any] = {name: None for name in ("cache", "past_key_values") if name in names}
    makers = {
        "full_attention": partial(create_causal_mask, config, embeds_BS0, None, position_ids=position_ids, **no_cache)
    }
    kinds = set(getattr(config, "layer_types", None) or [])
    if "sliding_attention" in kinds:
        makers["sliding_attention"] = partial(
            create_sliding_window_causal_mask, config, embeds_BS0, None, position_ids=position_ids, **no_cache
        )
        return {kind: make() for kind, make in makers.items()}
    return makers["full_attention"]()


class HeadTask(Protocol):
    """What a method's loss does with the LM head, within the head's own call."""

    @property
    def slots_T(self) -> Tensor:
        """Flat index b·S + s of each row whose hidden state is needed, int64."""

    @property
    def states(self) -> "StateTask | None":
        """What is to be done with states of the student's layers; None for nothing."""

    def at_head(self, hidden_TD: Tensor, head: LMHead, sequences_T: Tensor) -> dict[str, Tensor | None]:
        """The loss of the rows, summed, under the name `loss`, and what metrics are made of.

        With a task for states also `weights_T` of the rows that were trained, and `rows_T`, which; None for all.

        Args:
            hidden_TD: last hidden states of the rows.
            head: the student's.
            sequences_T: number of the sequence of each row.
        """


class StateTask(Protocol):
    """What a method's loss does with states of the student's layers, within its forward call."""

    @property
    def places(self) -> Sequence[StatePlace]:
        """The states that it needs, each once."""

    def values(self, model: Any, states: NotedStates, slots_T: Tensor) -> Tensor:
        """Losses at each row, without weights, [L, T].

        Args:
            model: the student.
            states: of `places`.
            slots_T: flat index b·S + s of each row, int64.
        """

    @property
    def weights(self) -> Sequence[float]:
        """Of the L losses."""


class _StudentForward:
    """A causal LM's forward that understands `distill=`. An object, so that a copy of the model gets one of its own."""

    def __init__(self, model: Any) -> None:
        self.model, self.plain = model, model.forward
        self.router: RouterLoss | None = None

    def __call__(self, *args: Any, distill: HeadTask | None = None, **kwargs: Any) -> Any:
        if distill is None:
            return self.plain(*args, **kwargs)
        assert not args, "input_ids and position_ids are given by name"
        task = distill.states
        places = [] if task is None else task.places
        router = self.router if self.model.training else None
        if router is not None:
            kwargs["output_router_logits"] = True
        with noted_states(self.model, places) as states:
            body_out = _body_output(self.model, **kwargs)
        hidden_BSD = body_out.last_hidden_state
        hidden_TD = hidden_BSD.flatten(0, 1).index_select(0, distill.slots_T)
        sequences_T = distill.slots_T // hidden_BSD.shape[1]
        head = self.model.get_output_embeddings()
        out = head(hidden_TD, distill=distill, sequences_T=sequences_T, student=self.model)
        if router is not None:
            out["router"] = router.value(body_out.router_logits, kwargs["position_ids"])
        if task is None:
            return out
        states |= {place: {0: hidden_BSD} for place in places if _is_last(place, self.model)}
        return _with_states(out, task, task.values(self.model, states, distill.slots_T))


def _is_last(place: StatePlace, model: Any) -> bool:
    """Whether a place is what the head reads, which no hook notes."""
    return place.of == "hidden" and place.layer == len(blocks_of(model))


def _with_states(out: dict[str, Tensor | None], task: StateTask, values_LT: Tensor) -> dict[str, Tensor | None]:
    """What the head yields, with the weighted losses of states of the rows that it trained added to the loss."""
    rows_T, weights_T, loss = out.get("rows_T"), out["weights_T"], out["loss"]
    assert loss is not None, "a head yields a loss"
    if rows_T is not None:
        values_LT = values_LT.index_select(1, rows_T)
    weighted_LT = values_LT if weights_T is None else values_LT * weights_T.to(values_LT.dtype)
    factors_L = torch.tensor(task.weights, dtype=values_LT.dtype, device=values_LT.device)
    return {**out, "loss": loss + (factors_L @ weighted_LT).sum(), "states_LT": values_LT.detach()}


class _HeadForward:
    """An output embedding's forward that yields the loss of a task. It holds no model, so its copies stay small."""

    def __init__(self, layer: Any) -> None:
        self.plain = layer.forward

    def __call__(self, *args: Any, distill: HeadTask | None = None, student: Any = None, **kwargs: Any) -> Any:
        if distill is None:
            return self.plain(*args, **kwargs)
        (hidden_TD,) = args
        return distill.at_head(hidden_TD, LMHead.from_model(student), **kwargs)


def attach(model: Any, *, router_loss: float | None = None) -> None:
    """Give a causal LM the forward that understands a `HeadTask` as `distill=`; all else is passed on.

    Its output embedding gets one too: what the head does with a task it does within its own call, so that a head that
    is sharded apart from the body (FSDP2) is gathered for it and its gradient scattered. A second call changes nothing
    but the router loss.

    Args:
        model: a causal LM.
        router_loss: times which the load balancing loss of its experts is yielded in training, as `router`; None: as
            its config says. See `router_loss`.

    Raises:
        ModelError: a router loss was asked for, and the model has no routers.
    """
    layer = model.get_output_embeddings()
    if not isinstance(model.forward, _StudentForward):
        model.forward = _StudentForward(model)
    model.forward.router = RouterLoss.of(model, router_loss)
    if not isinstance(layer.forward, _HeadForward):
        layer.forward = _HeadForward(layer)


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
        fits = masked.is_closed(tolerance) and float((masked.alone - plain.alone).abs().max()) <= plain.rounding
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        fits = False  # it takes no such masks: documents are not kept apart
    if not fits:
        mask_packed_documents(model, False)
    return fits
