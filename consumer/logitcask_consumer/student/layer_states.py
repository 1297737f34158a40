"""What chosen layers of a student yield in its ordinary forward call: hidden states, or attention projections.

Shape legend: B sequences, S slots, D width of the states.

Layers have the numbers of a capture's hints (`logitcask_schemas.record.hint_spec`): 0 is the embeddings, k the output
of block k, M (the number of blocks) what the head reads.

The states are noted by hooks that stand for one forward call. A hook keeps a reference and computes nothing: under
gradient checkpointing a layer's forward runs again in the backward pass, without the hook, and must do the same again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitcask_consumer.head import base_model
from logitcask_consumer.student.layer_pass import hidden_of
from logitcask_schemas.errors import ModelError
from logitcask_schemas.record.hint_spec import HintKind


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class StatePlace:
    """Which state: of which kind, after which layer."""

    of: HintKind = "hidden"
    layer: int


NotedStates = dict[StatePlace, dict[int, Tensor]]
"""The tensors [B, S, D] that make up a state, by their number in it; a body may make them in another order."""


def state_rows(states: NotedStates, place: StatePlace, slots_T: Tensor) -> Tensor:
    """A noted state at some slots, [T, D].

    Args:
        states: from `noted_states`, after the body ran.
        place: which.
        slots_T: flat index b·S + s of each row.
    """
    rows = [part_BSD.flatten(0, 1).index_select(0, slots_T) for _, part_BSD in sorted(states[place].items())]
    return rows[0] if len(rows) == 1 else torch.cat(rows, -1)


def blocks_of(model: Any) -> nn.ModuleList:
    """The blocks of a causal LM's body, in order.

    Raises:
        ModelError: they lie in no list directly under the body.
    """
    body: Any = base_model(model)
    count = body.config.get_text_config().num_hidden_layers
    for child in body.children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise ModelError(
        f"{type(model).__name__} keeps its {count} layers in no list directly under {type(body).__name__}: what "
        "its layers hold is not found"
    )


@contextmanager
def noted_states(model: Any, places: Sequence[StatePlace]) -> Iterator[NotedStates]:
    """Note states during the forward call of a body within the block; those of the last layer are the body's own.

    Args:
        model: a causal LM, perhaps with adapters.
        places: which; `hidden` of the last layer is left out, since the body returns it.

    Yields:
        By place the tensors [B, S, D] that make up the state, filled while the body runs.

    Raises:
        ModelError: the model has no such layer, or keeps its projections otherwise than by the usual names.
    """
    states: NotedStates = {}
    handles: list[Any] = []
    try:
        if places:
            blocks = blocks_of(model)
            for place in places:
                handles += _hooks(blocks, place, states)
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _hooks(blocks: nn.ModuleList, place: StatePlace, states: NotedStates) -> list[Any]:
    """Hooks that note one state."""
    _require_layer(place, len(blocks))
    if place.of == "hidden":
        if place.layer == len(blocks):
            return []
        if place.layer == 0:
            return [blocks[0].register_forward_pre_hook(_note_input(place, states), with_kwargs=True)]
        return [blocks[place.layer - 1].register_forward_hook(_note_output(place, 0, states))]
    parts = projections(blocks[place.layer - 1], place)
    return [part.register_forward_hook(_note_output(place, at, states)) for at, part in enumerate(parts)]


def _require_layer(place: StatePlace, count: int) -> None:
    first = 0 if place.of == "hidden" else 1
    if not first <= place.layer <= count:
        raise ModelError(f"the student has layers {first} to {count} of {place.of}, there is no layer {place.layer}")


def projections(block: Any, place: StatePlace) -> list[nn.Module]:
    """The layers of a block's attention that yield the queries, keys and values of a place, in this order.

    Raises:
        ModelError: the attention has none of the usual names.
    """
    attention = getattr(block, "self_attn", None) or getattr(block, "attn", None)
    names = ("v_proj",) if place.of == "v" else ("q_proj", "k_proj", "v_proj")
    separate = [getattr(attention, name, None) for name in names]
    modules = [module for module in separate if isinstance(module, nn.Module)]
    if len(modules) == len(names):
        return modules
    fused = getattr(attention, "qkv_proj", None)
    if place.of == "qkv" and isinstance(fused, nn.Module):
        return [fused]
    raise ModelError(
        f"{type(block).__name__} has no {', '.join(names)} in its attention: relations of {place.of} need a student "
        "whose projections have these names"
    )


def projection_widths(model: Any) -> tuple[int, int, int]:
    """Numbers of a query, a key and a value vector of a model, heads end to end, by its config."""
    return widths_of(model.config)


def widths_of(config: Any) -> tuple[int, int, int]:
    """As `projection_widths`, of a transformers config."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    return heads * size, shared * size, shared * size


def state_width(model: Any, of: HintKind) -> int:
    """Numbers of one state."""
    if of == "hidden":
        return int(model.config.get_text_config().hidden_size)
    query, key, value = projection_widths(model)
    return value if of == "v" else query + key + value


def _note_input(place: StatePlace, states: NotedStates) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        states[place] = {0: args[0] if args else kwargs["hidden_states"]}

    return hook


def _note_output(place: StatePlace, at: int, states: NotedStates) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module, args
        states.setdefault(place, {})[at] = hidden_of(output)

    return hook
