"""Which attention heads, MLP channels and hidden channels of a model are kept, and where its weights hold them.

Known are layers as Llama has them: `self_attn` of q_proj, k_proj, v_proj and o_proj, `mlp` of gate_proj, up_proj and
down_proj, and norms over the hidden channels. Whatever else a model's layers hold is refused by its name: how it
depends on a width would be a guess.

Shape legend: N layers, H query heads, G groups of heads that share keys and values, I channels of an MLP, D hidden
channels.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor

from logitcask_consumer.student.importance import Importance, ModelShape
from logitcask_schemas.errors import ModelError

Axis = Literal["query", "shared", "head", "mlp", "hidden", "vocabulary"]
"""What a dimension of a weight counts: rows of all query heads, of all heads of keys or values, of one head, ..."""

_IN_LAYERS: Final[dict[str, tuple[Axis, ...]]] = {
    "self_attn.q_proj.weight": ("query", "hidden"),
    "self_attn.q_proj.bias": ("query",),
    "self_attn.k_proj.weight": ("shared", "hidden"),
    "self_attn.k_proj.bias": ("shared",),
    "self_attn.v_proj.weight": ("shared", "hidden"),
    "self_attn.v_proj.bias": ("shared",),
    "self_attn.o_proj.weight": ("hidden", "query"),
    "self_attn.o_proj.bias": ("hidden",),
    "self_attn.q_norm.weight": ("head",),
    "self_attn.k_norm.weight": ("head",),
    "mlp.gate_proj.weight": ("mlp", "hidden"),
    "mlp.gate_proj.bias": ("mlp",),
    "mlp.up_proj.weight": ("mlp", "hidden"),
    "mlp.up_proj.bias": ("mlp",),
    "mlp.down_proj.weight": ("hidden", "mlp"),
    "mlp.down_proj.bias": ("hidden",),
}
_NORM: Final = re.compile(r"\w*norm\.(weight|bias)")
"""A norm over the hidden channels, by its name in a layer or beside the layers."""


class WidthError(ModelError):
    """A model cannot be made narrower in this way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """How much is kept; None: all."""

    heads: int | None = None
    """Query heads of each layer."""
    mlp: int | None = None
    """Channels of each layer's MLP."""
    hidden: int | None = None
    """Hidden channels."""

    def require(self, shape: ModelShape) -> None:
        """Refuse more than there is, and heads that would split a group.

        Raises:
            WidthError: says what is possible.
        """
        for name, asked, there in (
            ("heads", self.heads, shape.heads),
            ("mlp", self.mlp, shape.mlp),
            ("hidden", self.hidden, shape.hidden),
        ):
            if asked is not None and asked > there:
                raise WidthError(f"{name}={asked} was asked for; the teacher has {there}")
        if self.heads is not None and self.heads % shape.heads_per_group:
            possible = ", ".join(str(n * shape.heads_per_group) for n in range(1, shape.groups + 1))
            raise WidthError(
                f"heads={self.heads} was asked for; {shape.heads_per_group} query heads of the teacher share a head of "
                f"keys and values and are kept together, so {possible} are possible"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptUnits:
    """The numbers of what is kept, ascending, int64."""

    groups: tuple[Tensor, ...]
    """Of each layer, the groups of heads."""
    neurons: tuple[Tensor, ...]
    """Of each layer, the channels of its MLP."""
    channels: Tensor
    """Hidden channels, the same in all layers."""

    @classmethod
    def of(cls, importance: Importance, widths: Widths, shape: ModelShape) -> Self:
        """The most important ones. A group is as important as its heads together; of equals the first are kept."""
        by_group_NG = importance.heads_NH.view(shape.layers, shape.groups, shape.heads_per_group).sum(-1)
        groups = shape.groups if widths.heads is None else widths.heads // shape.heads_per_group
        neurons = shape.mlp if widths.mlp is None else widths.mlp
        channels = shape.hidden if widths.hidden is None else widths.hidden
        return cls(
            groups=tuple(largest(scores, groups) for scores in by_group_NG),
            neurons=tuple(largest(scores, neurons) for scores in importance.neurons_NI),
            channels=largest(importance.channels_D, channels),
        )

    def shape(self, before: ModelShape) -> ModelShape:
        """That of the model of what is kept."""
        groups = len(self.groups[0])
        return ModelShape(
            layers=before.layers,
            heads=groups * before.heads_per_group,
            groups=groups,
            head=before.head,
            mlp=len(self.neurons[0]),
            hidden=len(self.channels),
        )

    def rows(self, axis: Axis, layer: int | None, shape: ModelShape) -> Tensor | None:
        """Which numbers along a weight's dimension are kept, int64; None for all.

        Args:
            axis: what the dimension counts.
            layer: the weight's; None outside the layers.
            shape: of the whole model.
        """
        if axis == "hidden":
            return self.channels
        if layer is None or axis in ("head", "vocabulary"):
            return None
        if axis == "mlp":
            return self.neurons[layer]
        each = shape.head if axis == "shared" else shape.head * shape.heads_per_group
        return (self.groups[layer][:, None] * each + torch.arange(each)).flatten()


def largest(scores: Tensor, count: int) -> Tensor:
    """Numbers of the `count` largest scores, ascending, int64 [count]; of equal ones the first."""
    return torch.sort(scores, descending=True, stable=True).indices[:count].sort().values


def layer_of(name: str, prefix: str) -> tuple[int | None, str]:
    """The layer that a weight belongs to, None for none, and the weight's name in it."""
    if not name.startswith(prefix + "."):
        return None, name.removeprefix(prefix.rpartition(".")[0] + ".")
    number, _, rest = name.removeprefix(prefix + ".").partition(".")
    return int(number), rest


def axes_of(name: str, prefix: str) -> tuple[Axis, ...] | None:
    """What the dimensions of a weight count, by its name in the model; None where it is not known."""
    layer, rest = layer_of(name, prefix)
    if layer is None and rest in ("embed_tokens.weight", "lm_head.weight"):
        return ("vocabulary", "hidden")
    if layer is None and rest == "lm_head.bias":
        return ("vocabulary",)
    if _NORM.fullmatch(rest):
        return ("hidden",)
    return None if layer is None else _IN_LAYERS.get(rest)


def require_known(model: Any, prefix: str) -> ModelShape:
    """The shape of a model all of whose weights are known.

    Args:
        model: a causal LM.
        prefix: name of the list of its layers.

    Raises:
        WidthError: names the first weight that is not known, or has another shape than the config gives it.
    """
    shape = ModelShape.of(model.config)
    sizes: dict[Axis, int] = {
        "query": shape.heads * shape.head,
        "shared": shape.groups * shape.head,
        "head": shape.head,
        "mlp": shape.mlp,
        "hidden": shape.hidden,
    }
    for name, weight in model.state_dict().items():
        axes = axes_of(name, prefix)
        expected = None if axes is None else tuple(sizes.get(axis, weight.shape[0]) for axis in axes)
        if expected != tuple(weight.shape):
            how = (
                "is none that layers like Llama's have"
                if expected is None
                else (f"is {list(weight.shape)}, where its config makes {list(expected)} of it")
            )
            raise WidthError(
                f"{type(model).__name__} cannot be made narrower: its weight {name} {how}. heads, mlp and hidden are "
                "for layers of q_proj, k_proj, v_proj, o_proj and gate_proj, up_proj, down_proj (Llama, Qwen 2 and 3, "
                "Mistral, SmolLM2, Gemma); take layers= alone"
            )
    return shape
