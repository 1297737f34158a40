"""A model of some of another's heads and channels, and the proof that it is that model.

What is left out counts as 0. With fewer hidden channels a norm divides by the root mean square of fewer numbers: its
weights are scaled by the mean factor that this makes on the text, and its epsilon is that of fewer channels, which is
exact where the channels left out are 0.

The proof needs no knowledge of the family. In the whole model what is left out is set to 0, and both must have the same
logits on a few tokens. So whatever else depends on a width (Gemma scales its embeddings by the square root of the
hidden size) is found and refused. Both round their sums differently, and a model whose states are large may make much
of that; where they are not the same in float32, float64 decides.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

import torch
from torch import Tensor

from logitcask_consumer.student.importance import ModelShape
from logitcask_consumer.student.kept_units import KeptUnits, WidthError, axes_of, layer_of
from logitcask_consumer.student.layer_pass import TOKENS
from logitcask_consumer.student.layer_proof import FAILURES, LayersDifferError, first_line, require_config_lasts
from logitcask_consumer.student.loading import fresh_model

_TOLERANCE: Final = 1e-4
"""Of the largest logit: float32 sums of other lengths, and the epsilon of norms over a head."""


def narrowed(model: Any, prefix: str, shape: ModelShape, kept: KeptUnits, shares: Mapping[str, Tensor]) -> Any:
    """A float32 model of what is kept, proved.

    Args:
        model: a causal LM whose weights are known, see `require_known`. What is left out of it is set to 0.
        prefix: name of the list of its layers.
        shape: of the model.
        kept: of its units.
        shares: by name of each norm, the share of each hidden channel in the square of what it is given, [D].

    Raises:
        WidthError: the model's config does not allow these widths, or something else depends on them.
    """
    after = kept.shape(shape)
    student = _fresh(model, shape, after)
    factors = _norm_factors(shares, kept.channels, shape.hidden)
    weights = _cut(model.state_dict(), prefix, shape, kept, factors)
    _require_same_shapes(student, weights, after)
    student.load_state_dict(weights, strict=True)
    _leave_out(model, prefix, shape, kept, factors)
    _require_same_logits(model, student, after)
    return student


def _fresh(model: Any, shape: ModelShape, after: ModelShape) -> Any:
    """A fresh model of these widths.

    Raises:
        WidthError: the config does not allow them, or reads as another once it is written.
    """
    config = deepcopy(model.config)
    text = config.get_text_config()
    widths: dict[str, Any] = {
        "num_attention_heads": after.heads,
        "num_key_value_heads": after.groups,
        "head_dim": after.head,  # said, not left to hidden_size / num_attention_heads, which is another number now
        "intermediate_size": after.mlp,
        "hidden_size": after.hidden,
    }
    if after.hidden < shape.hidden and hasattr(text, "rms_norm_eps"):
        # It stands beside a mean square, which is over fewer channels now.
        widths["rms_norm_eps"] = text.rms_norm_eps * shape.hidden / after.hidden
    try:
        for name, value in widths.items():
            setattr(text, name, value)
        student = fresh_model(config)
        require_config_lasts(student, model)
    except (LayersDifferError, *FAILURES) as error:
        wanted = ", ".join(f"{name}={value}" for name, value in widths.items())
        reason = first_line(error.__cause__ or error)
        raise WidthError(
            f"{type(model.config).__name__} does not describe a model of {wanted} ({reason}). Choose other widths"
        ) from error
    return student


def _require_same_shapes(student: Any, weights: Mapping[str, Tensor], after: ModelShape) -> None:
    """Refuse a family that does not make the weights that were cut: one that takes a head's width from others.

    Raises:
        WidthError: names the first weight that would have another shape.
    """
    for name, fresh in student.state_dict().items():
        if fresh.shape != weights[name].shape:
            raise WidthError(
                f"{type(student).__name__} cannot be made of {after.heads} heads of {after.head}, {after.mlp} MLP "
                f"channels and {after.hidden} hidden channels: its weight {name} would be {list(fresh.shape)} and not "
                f"{list(weights[name].shape)}, as it takes the width of a head from others. Leave out hidden= and "
                "heads=, or take layers= alone"
            )


def _norm_factors(shares: Mapping[str, Tensor], channels: Tensor, hidden: int) -> dict[str, float]:
    """What the weights of each norm are multiplied by: the root mean square over kept channels, over that of all."""
    if len(channels) == hidden:
        return {}
    return {name: float((share_D[channels].sum() * hidden / len(channels)).sqrt()) for name, share_D in shares.items()}


def _cut(
    weights: Mapping[str, Tensor], prefix: str, shape: ModelShape, kept: KeptUnits, factors: Mapping[str, float]
) -> dict[str, Tensor]:
    """The rows and columns of each weight that are kept, norms scaled."""
    cut = {}
    for name, whole in weights.items():
        axes, (layer, _) = axes_of(name, prefix), layer_of(name, prefix)
        assert axes is not None, "require_known has refused other weights"
        value = whole
        for dimension, axis in enumerate(axes):
            rows = kept.rows(axis, layer, shape)
            if rows is not None:
                value = value.index_select(dimension, rows.to(value.device))
        module, _, parameter = name.rpartition(".")
        cut[name] = value * factors[module] if module in factors and parameter == "weight" else value
    return cut


@torch.no_grad()
def _leave_out(model: Any, prefix: str, shape: ModelShape, kept: KeptUnits, factors: Mapping[str, float]) -> None:
    """Set what is not kept to 0, where it is read or written: afterwards the model computes what the student does."""
    # A norm over all channels divides by a smaller number than one over those that are not 0.
    to_all = (len(kept.channels) / shape.hidden) ** 0.5
    for name, weight in model.state_dict().items():
        axes, (layer, _) = axes_of(name, prefix), layer_of(name, prefix)
        assert axes is not None, "require_known has refused other weights"
        for dimension, axis in enumerate(axes):
            rows = kept.rows(axis, layer, shape)
            if rows is None:
                continue
            dropped = torch.ones(weight.shape[dimension], dtype=torch.bool)
            dropped[rows] = False
            weight.index_fill_(dimension, dropped.nonzero().flatten().to(weight.device), 0.0)
        module, _, parameter = name.rpartition(".")
        if module in factors and parameter == "weight":
            weight.mul_(factors[module] * to_all)


def _require_same_logits(model: Any, student: Any, after: ModelShape) -> None:
    """Compare both on a few tokens, in float64 where float32 does not show that they are the same.

    Raises:
        WidthError: they differ.
    """
    apart, largest = _apart(model, student)
    if not apart <= _TOLERANCE * largest:
        try:
            # It takes twice the memory, so it is not the first thing to do.
            apart, largest = _apart(model.double(), student.double())
        finally:
            student.float()  # exact: its numbers came from float32
    if not apart <= _TOLERANCE * largest:
        raise WidthError(
            f"{type(model).__name__} of {after.heads} heads, {after.mlp} MLP channels and {after.hidden} hidden "
            f"channels does not compute what the teacher does without the others: logits of up to {largest:.3g} differ "
            f"by {apart:.2g}, in float64 too. Something else in it depends on a width: "
            + ("leave out hidden=, or take layers= alone" if after.hidden < _hidden(model) else "take layers= alone")
        )


@torch.no_grad()
def _apart(model: Any, student: Any) -> tuple[float, float]:
    """The largest difference between the logits of both on a few tokens, and the largest of the model's logits."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids_1L = (torch.arange(1, TOKENS + 1) * 7).remainder(vocabulary)[None]
    expected, got = (
        each.eval()(input_ids=ids_1L.to(each.get_input_embeddings().weight.device), use_cache=False).logits.cpu()
        for each in (model, student)
    )
    return float((expected - got).abs().max()), max(float(expected.abs().max()), 1e-6)


def _hidden(model: Any) -> int:
    """Hidden channels of a model."""
    return int(model.get_input_embeddings().weight.shape[1])
