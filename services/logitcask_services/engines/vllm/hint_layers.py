"""Hidden states on their way out of vLLM: the capturing model appends them to what it returns, the pooler takes them.

The layers are settled when the engine starts, since they are part of the model's forward pass. `additional_config`
carries them to the processes of the engine.

Hidden states come from the model itself (`set_aux_hidden_state_layers`, made for EAGLE-3, whose layers are numbered as
ours: 0 is the embeddings, k the residual stream after block k). They are replicated under tensor parallelism.
Projections are heard by hooks, which a compiled graph would not run, and are gathered from the ranks. Of layer N, the
last, the hidden states are those that the head reads, which the model returns anyway.

Shape legend: S scheduled tokens, D hidden width, E width of one appended vector, K layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from logitcask_schemas.errors import ModelError
from logitcask_schemas.record.hint_spec import HintKind, HintSpec
from logitcask_services.engines.projections import attention_of

CONFIG_KEY: Final = "logitcask_hints"


@dataclass(frozen=True, slots=True, kw_only=True)
class HintLayers:
    """What an engine was started with."""

    of: HintKind
    layers: tuple[int, ...]
    """Ascending."""
    num_blocks: int

    @property
    def appended(self) -> tuple[int, ...]:
        """Layers whose vectors follow the hidden states that the head reads."""
        return tuple(layer for layer in self.layers if self.of != "hidden" or layer < self.num_blocks)

    def gives(self, spec: HintSpec) -> bool:
        """Whether all that a spec asks for is there."""
        return spec.of == self.of and set(spec.layers) <= set(self.layers)

    def as_config(self) -> dict[str, Any]:
        """For `additional_config`."""
        return {CONFIG_KEY: {"of": self.of, "layers": list(self.layers), "num_blocks": self.num_blocks}}

    @classmethod
    def of_config(cls, additional_config: Any) -> "HintLayers | None":
        """What `as_config` wrote; None where the engine was started without."""
        fields = additional_config.get(CONFIG_KEY) if isinstance(additional_config, Mapping) else None
        if fields is None:
            return None
        return cls(of=fields["of"], layers=tuple(fields["layers"]), num_blocks=fields["num_blocks"])

    def values(self, whole_SX: torch.Tensor, hidden_width: int, spec: HintSpec, rows_R: torch.Tensor) -> torch.Tensor:
        """The vectors of a spec's layers for some rows, [R, K, E].

        Args:
            whole_SX: the hidden states that the head reads, then the appended vectors.
            hidden_width: D.
            spec: one that these layers give.
            rows_R: which of the scheduled tokens, int64.
        """
        appended = self.appended
        each = (whole_SX.shape[1] - hidden_width) // len(appended) if appended else 0
        parts = []
        for layer in spec.layers:
            if layer in appended:
                start = hidden_width + each * appended.index(layer)
                parts.append(whole_SX[:, start : start + each].index_select(0, rows_R))
            else:
                parts.append(whole_SX[:, :hidden_width].index_select(0, rows_R))
        return torch.stack(parts, dim=1)


def require_class_gives(base: type[Any], hints: HintSpec, *, eager: bool) -> None:
    """Refuse what a model of vLLM cannot give, before a process is started for it.

    Args:
        base: its class.
        hints: what is asked for.
        eager: whether it runs without compiled graphs.

    Raises:
        ModelError: the class keeps its hidden states to itself, or hooks would not be run.
    """
    if hints.of == "hidden" and not getattr(base, "supports_eagle3", False):
        raise ModelError(
            f"vLLM's {base.__name__} does not give its hidden states (it has no set_aux_hidden_state_layers): serve "
            "the teacher with --engine transformers for hints"
        )
    if hints.of != "hidden" and not eager:
        raise ModelError(
            f"hints of {hints.of} need vLLM without compiled graphs, which run no hooks: leave out the option "
            "enforce_eager, which says false, serve the teacher with --engine transformers, or ask for hints of hidden "
            "states"
        )


def hook_defaults(hints: HintSpec | None) -> dict[str, bool]:
    """Arguments of an engine that shall run hooks, which compiled graphs leave out; the caller's override them.

    Args:
        hints: what is asked for.
    """
    return {} if hints is None or hints.of == "hidden" else {"enforce_eager": True}


def give_hints(model: Any, hints: HintLayers) -> None:
    """Let a capturing model append hints to what it returns: [S, D] becomes [S, D + E * layers].

    Raises:
        ModelError: its attention is in no form that is known.
    """
    heard: dict[int, torch.Tensor] = {}
    if hints.of == "hidden":
        if hints.appended:
            model.set_aux_hidden_state_layers(hints.appended)
    else:
        for layer in hints.appended:
            _listen(model, layer, hints, heard)
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        heard.clear()
        returned = plain(*args, **kwargs)
        if isinstance(returned, tuple):
            hidden, appended = returned[0], list(returned[1])
        else:
            hidden, appended = returned, [heard[layer] for layer in hints.appended if layer in heard]
        if not isinstance(hidden, torch.Tensor) or not appended:
            return returned  # a rank of an earlier pipeline stage hands its tensors on
        if len(appended) != len(hints.appended):
            raise ModelError(
                f"{type(model).__name__} gave hints of {len(appended)} layers, asked for {len(hints.appended)}; hints "
                "of v and qkv do not pass from one pipeline stage to the next: serve it with one stage"
            )
        return torch.cat([hidden, *(rows.to(hidden.dtype) for rows in appended)], dim=-1)

    model.forward = forward


def _listen(model: Any, layer: int, hints: HintLayers, heard: dict[int, torch.Tensor]) -> None:
    attention = attention_of(model, layer, hints.num_blocks)
    projection = getattr(attention, "qkv_proj", None)
    q_size, kv_size = getattr(attention, "q_size", None), getattr(attention, "kv_size", None)
    if projection is None or not isinstance(q_size, int) or not isinstance(kv_size, int):
        raise ModelError(
            f"vLLM's {type(attention).__name__} has no qkv_proj of known widths, so its {hints.of} cannot be told "
            "apart; serve the teacher with --engine transformers, or ask for hints of hidden states"
        )
    copies = _copies_of_a_kv_head(attention)

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        whole = output[0] if isinstance(output, tuple) else output
        query, key, value = whole.split([q_size, kv_size, kv_size], dim=-1)
        value = gathered(value, copies)
        heard[layer] = value if hints.of == "v" else torch.cat([gathered(query, 1), gathered(key, copies), value], -1)

    projection.register_forward_hook(hook)


def _copies_of_a_kv_head(attention: Any) -> int:
    """On how many ranks each key and value head lies: more than one where there are more ranks than heads."""
    from vllm.distributed import get_tensor_model_parallel_world_size

    heads = getattr(attention, "total_num_kv_heads", None)
    return 1 if heads is None else max(1, get_tensor_model_parallel_world_size() // int(heads))


def gathered(part: torch.Tensor, copies: int) -> torch.Tensor:
    """The whole vector from the parts of all tensor-parallel ranks, heads in order.

    Args:
        part: this rank's, [S, E / ranks], or a copy of some others'.
        copies: how many ranks in a row hold the same part.
    """
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return part
    whole: torch.Tensor = tensor_model_parallel_all_gather(part.contiguous(), dim=-1)
    return without_copies(whole, ranks, copies)


def without_copies(whole: torch.Tensor, ranks: int, copies: int) -> torch.Tensor:
    """What all ranks gave, end to end, with each part once."""
    return torch.cat(whole.chunk(ranks, dim=-1)[::copies], dim=-1)
