"""The proof that a student's layers are the teacher's: what they are made of, what they are given, what they compute.

A config that is cut to fewer layers may place another kind of layer at a number, or a layer may compute something that
depends on its number (GPT-2's inverse layer scaling, DiffLlama's lambda, layers that share keys and values). Such a
student would train, from weights that no longer mean what they did. So the models are compared, whatever the family:

1. each kept layer has the modules, shapes, settings and buffers that it has in the teacher;
2. in a pass over a few tokens each is given what it is given in the teacher (masks, position embeddings), yields what
   it yields there for the same hidden states, and hands it to the next;
3. what lies before and after the layers is the same: embeddings, and logits from the last layer's hidden states;
4. the config, written and read again, is still that of the student.
"""

import tempfile
from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from logitcask_consumer.student.kept_layers import KeptLayers, layer_fields
from logitcask_consumer.student.layer_pass import LayerPass, hidden_of
from logitcask_schemas.errors import ModelError

_TOLERANCE: Final = 1e-5
"""Of the largest value; the same operations on the same numbers."""
_LONGEST: Final = 300
"""Characters of another library's message that are repeated."""
_NOT_SETTINGS: Final = frozenset(
    {"training", "layer_idx", "layer_id", "layer_number", "layer_index", "block_idx", "num_hidden_layers"}
)
"""The mode, the numbers by which layers know themselves, and how many there are; what they are used for is compared."""
_SHARING: Final = frozenset({"store_full_length_kv", "shared_kv_states"})
"""Settings and arguments of layers that give keys and values to others: of no account where no layer takes them."""
FAILURES: Final = (
    *(RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, ImportError, AssertionError),
    StrictDataclassError,
)
"""What transformers raises where a config and a model do not go together."""


class LayersDifferError(ModelError):
    """A layer of the teacher cannot be what it was in a shallower model."""


def require_same_layers(teacher: Any, student: Any, prefix: str, kept: KeptLayers) -> None:
    """Compare the modules of each kept layer with the teacher's, before weights are copied.

    Args:
        teacher: a causal LM.
        student: one of the kept layers only.
        prefix: name of the list of layers.
        kept: which they are.

    Raises:
        LayersDifferError: a layer differs in classes, shapes or settings; names both and the config's fields.
    """
    own, theirs = student.get_submodule(prefix), teacher.get_submodule(prefix)
    if len(own) != len(kept.numbers):
        raise LayersDifferError(
            f"a config of {len(kept.numbers)} layers makes {len(own)} of them in {type(student).__name__}"
            + _placed_by(teacher)
        )
    # Masks follow these lists, and sliding windows are longer than the few tokens of a pass.
    kinds, own_kinds = (getattr(model.config.get_text_config(), "layer_types", None) for model in (teacher, student))
    if kinds is not None and len(kinds) == kept.total and list(own_kinds or []) != [kinds[i] for i in kept.numbers]:
        raise LayersDifferError(
            f"{type(teacher).__name__}: layer_types of the kept layers would be {own_kinds}" + _placed_by(teacher)
        )
    for new, old in enumerate(kept.numbers):
        ignored = _ignored(teacher)
        after = _described(own[new], ignored)
        before = _described(theirs[old], ignored)
        difference = _first_difference(
            {name: _cut(value, after.get(name), kept) for name, value in before.items()}, after
        )
        if difference is not None:
            raise LayersDifferError(
                f"layer {old} of {type(teacher).__name__} would be another as layer {new} of the student: {difference}"
                + _placed_by(teacher)
            )
    before, after = _outside(teacher, prefix), _outside(student, prefix)
    # A kind of layer that is not kept needs no rotary frequencies.
    before = {name: value for name, value in before.items() if name in after or not name.startswith("buffer ")}
    outside = _first_difference(before, after)
    if outside is not None:
        raise LayersDifferError(
            f"{type(teacher).__name__} holds weights outside its layers that depend on their number: {outside}"
            + _placed_by(teacher)
        )


@torch.no_grad()
def require_same_behaviour(teacher: Any, student: Any, prefix: str, kept: KeptLayers) -> None:
    """Compare what each kept layer is given and computes with the teacher's, on a few tokens, and what surrounds them.

    Raises:
        LayersDifferError: something differs; names the layer and the config's fields.
    """
    modes = [(model, model.training) for model in (teacher, student)]
    teacher.eval()
    student.eval()
    try:
        _compare(teacher, student, prefix, kept)
    finally:
        for model, was_training in modes:
            model.train(was_training)


def require_config_lasts(student: Any, teacher: Any) -> None:
    """Write the student's config and read it again.

    Raises:
        LayersDifferError: it reads as another.
    """
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory(prefix="logitcask-config-") as folder:
        try:
            student.config.save_pretrained(folder)
            again = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except FAILURES as error:
            raise LayersDifferError(
                f"the config of the student cannot be written and read again ({first_line(error)})"
                + _placed_by(teacher)
            ) from error
    difference = _first_difference(_plain(student.config.to_dict()), _plain(again.to_dict()))
    if difference is not None:
        raise LayersDifferError(
            f"the config of the student reads as another once it is written: {difference}" + _placed_by(teacher)
        )


def _compare(teacher: Any, student: Any, prefix: str, kept: KeptLayers) -> None:
    name = type(teacher).__name__
    theirs = _pass(teacher, prefix, teacher)
    if not theirs.is_chain(range(kept.total)):
        raise LayersDifferError(
            f"{name} does not hand the hidden states of each layer to the next and to nothing else, so layers cannot "
            "be taken out of it" + _placed_by(teacher)
        )
    own = _pass(student, prefix, teacher, replaced=theirs.outputs[kept.total - 1])
    if not own.is_chain(range(len(kept.numbers))):
        raise LayersDifferError(f"{name} of fewer layers does not hand hidden states on" + _placed_by(teacher))
    _require_close(theirs.inputs[0], own.inputs[0], f"the first layer's hidden states in {name}", teacher)
    layers = student.get_submodule(prefix)
    for new, old in enumerate(kept.numbers):
        as_layer = f"layer {old} of {name} as layer {new} of the student"
        _require_close(theirs.arguments[old], own.arguments[new], f"what {as_layer} is given", teacher)
        args, kwargs = theirs.calls[old]
        try:
            output = hidden_of(layers[new](*args, **kwargs))
        except FAILURES as error:
            raise LayersDifferError(f"{as_layer} cannot be run ({first_line(error)})" + _placed_by(teacher)) from error
        _require_close(theirs.outputs[old], output, f"what {as_layer} computes", teacher)
    _require_close(theirs.logits, own.logits, f"the logits of {name} for the same hidden states", teacher)


def _pass(model: Any, prefix: str, teacher: Any, *, replaced: Tensor | None = None) -> LayerPass:
    try:
        return LayerPass.over(model, prefix, ignored=_ignored(teacher), replaced=replaced)
    except FAILURES as error:
        raise LayersDifferError(
            f"{type(model).__name__} of {len(model.get_submodule(prefix))} layers cannot be run ({first_line(error)})"
            + _placed_by(teacher)
        ) from error


def _described(layer: nn.Module, ignored: frozenset[str]) -> dict[str, Any]:
    """Classes, shapes, settings and buffers of a layer, by name."""
    described: dict[str, Any] = {}
    for name, module in layer.named_modules():
        described[f"{name}: class"] = type(module).__name__
        for setting, value in vars(module).items():
            if not setting.startswith("_") and setting not in ignored and _is_setting(value):
                described[f"{name}.{setting}".lstrip(".")] = value
    described |= {f"shape of {name}": tuple(value.shape) for name, value in layer.named_parameters()}
    return described | _computed_buffers(layer)


def _cut(value: Any, in_student: Any, kept: KeptLayers) -> Any:
    """A setting that lists something of every layer (GPT-Neo's attention) lists the kept ones in the student.

    One that is only as long as the model is deep, such as the shape of a weight in a model of two layers, is as it was.
    """
    if not isinstance(value, tuple | list) or len(value) != kept.total or value == in_student:
        return value
    own = type(value)(value[i] for i in kept.numbers)
    return own if own == in_student else value


def _computed_buffers(module: nn.Module) -> dict[str, Any]:
    """Buffers that are made by the config and saved nowhere."""
    saved = module.state_dict().keys()
    return {f"buffer {name}": value for name, value in module.named_buffers() if name not in saved}


def _ignored(model: Any) -> frozenset[str]:
    """Settings and arguments that may differ."""
    shares = getattr(model.config.get_text_config(), "num_kv_shared_layers", None)
    return _NOT_SETTINGS if shares else _NOT_SETTINGS | _SHARING


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_setting(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _outside(model: Any, prefix: str) -> dict[str, Any]:
    """Shapes of weights, and buffers, outside the layers."""
    shapes = {
        name: tuple(value.shape) for name, value in model.state_dict().items() if not name.startswith(prefix + ".")
    }
    buffers = _computed_buffers(model).items()
    return shapes | {name: value for name, value in buffers if not name.startswith(f"buffer {prefix}.")}


def _first_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            return f"{name} is {'missing' if name not in after else 'new'}"
        if not _same(before[name], after[name]):
            return f"{name} is {_shown(before[name])} there, {_shown(after[name])} in the student"
    return None


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape == after.shape and bool(((before == after) | (before.isnan() & after.isnan())).all())
    return bool(before == after) or (before != before and after != after)


def _shown(value: Any) -> str:
    text = f"{list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _require_close(before: Any, after: Any, what: str, teacher: Any) -> None:
    if not _close(before, after):
        raise LayersDifferError(f"{what} is not what it was in the teacher" + _placed_by(teacher))


def _close(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        if not isinstance(after, Tensor) or before.shape != after.shape or before.dtype != after.dtype:
            return False
        if not before.is_floating_point():
            return torch.equal(before, after)
        finite = before.isfinite()
        largest = float(before[finite].abs().max()) if finite.any() else 0.0
        return torch.allclose(before, after, rtol=_TOLERANCE, atol=_TOLERANCE * min(largest, 1e30), equal_nan=True)
    if isinstance(before, tuple | list):
        return isinstance(after, tuple | list) and len(before) == len(after) and all(map(_close, before, after))
    if isinstance(before, dict):
        return (
            isinstance(after, dict)
            and before.keys() == after.keys()
            and all(_close(before[k], after[k]) for k in before)
        )
    if _is_setting(before):
        return bool(before == after)
    return type(before) is type(after)


def _plain(value: Any) -> dict[str, Any]:
    """A config's fields, without what writing adds."""
    return dict(_items(value, ""))


def _items(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in ("transformers_version", "_name_or_path", "architectures", "dtype", "use_cache"):
                yield from _items(item, f"{path}.{name}".lstrip("."))
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _placed_by(model: Any) -> str:
    """The end of a message: which fields of the config say where a layer of which kind is."""
    fields = layer_fields(model.config)
    listing = ", ".join(f"{name}={_shown(value)}" for name, value in fields.items())
    by = f" (its config places layers by {listing})" if listing else ""
    return f"{by}. Choose other layers, or take an existing model as the student"


def first_line(error: BaseException) -> str:
    """An exception in one line, for messages: those of transformers may have many."""
    text = " ".join(str(error).split())
    return shorten(f"{type(error).__name__}: {text}", _LONGEST, placeholder=" ...")
