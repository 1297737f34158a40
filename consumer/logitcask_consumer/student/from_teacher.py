"""Students that are made of the teacher's own weights: some of its layers, of its heads, of the channels of each layer.

Written as `from-teacher:` and what is kept, joined by commas; see `TeacherParts`. Widths go first, on the whole
teacher: what is important in a layer is measured where the layer stands. Layers are chosen, and taken, from what is
left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import torch
from numpy.typing import NDArray
from torch import nn

from logitcask_consumer.head import base_model
from logitcask_consumer.student.importance import measured
from logitcask_consumer.student.kept_layers import KeptLayers, layer_fields
from logitcask_consumer.student.kept_units import KeptUnits, Widths, require_known
from logitcask_consumer.student.layer_importance import layer_importance, most_important
from logitcask_consumer.student.layer_proof import (
    FAILURES,
    LayersDifferError,
    require_config_lasts,
    require_same_behaviour,
    require_same_layers,
)
from logitcask_consumer.student.loading import fresh_model
from logitcask_consumer.student.narrow import narrowed
from logitcask_schemas.errors import ModelError

FROM_TEACHER: Final = "from-teacher:"
TEXT_TOKENS: Final = 32_768
"""Tokens of text by which layers, heads and channels are chosen."""
_WIDTHS: Final = ("heads", "mlp", "hidden")

LayerChoice = Literal["spacing", "importance"]
"""How a number of layers is chosen: evenly spread, or those that cost most where each is left out alone."""
Texts = Callable[[int], Sequence[NDArray[Any]]]
"""Gives documents of about so many tokens in all: token ids, each [L]."""


class StudentSpecError(ModelError):
    """A student's description cannot be followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherParts:
    """What a student keeps of its teacher; None: all of it.

    from-teacher:layers=10                     10 layers, evenly spread, the first and the last among them
    from-teacher:layers=10,by=importance       the 10 layers that cost most where each is left out
    from-teacher:layers=0,4,9                  exactly these layers
    from-teacher:heads=6,mlp=1024              6 attention heads and 1,024 channels of the MLP in each layer
    from-teacher:layers=20,hidden=384,tokens=65536   20 layers, 384 hidden channels, chosen by 65,536 tokens
    """

    layers: tuple[int, ...] | int | None = None
    """Their numbers, or how many."""
    by: LayerChoice = "spacing"
    """Which, where only their number is said."""
    widths: Widths = field(default_factory=Widths)
    tokens: int = TEXT_TOKENS
    """Of text, by which layers, heads and channels are chosen."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what stands behind `from-teacher:`.

        Raises:
            StudentSpecError: a name is not known, stands there twice, or has no number.
        """
        items = _items(text)
        layers = _parse_layers(",".join(items["layers"])) if "layers" in items else None
        by = _parse_choice(items["by"][0]) if "by" in items else "spacing"
        numbers = {name: _count(name, values[0]) for name, values in items.items() if name not in ("layers", "by")}
        widths = Widths(**{name: numbers[name] for name in _WIDTHS if name in numbers})
        if "by" in items and not isinstance(layers, int):
            raise StudentSpecError(
                f"{FROM_TEACHER}{text}: by says how a number of layers is chosen, and none is given; write it as in "
                f"{FROM_TEACHER}layers=20,by={by}, or leave by out"
            )
        parts = cls(layers=layers, by=by, widths=widths, tokens=numbers.get("tokens", TEXT_TOKENS))
        if "tokens" in numbers and not parts.needs_text:
            raise StudentSpecError(
                f"{FROM_TEACHER}{text}: tokens says how much text chooses layers, heads and channels, and none are "
                f"chosen by text; name {', '.join(_WIDTHS)} or by=importance too, or leave it out"
            )
        return parts

    @property
    def needs_text(self) -> bool:
        """Whether layers, heads or channels are chosen by text."""
        return self.by == "importance" or self.widths != Widths()

    def student(
        self, teacher: Any, folder: Path, texts: Texts | None, say: Callable[[str], None] = lambda message: None
    ) -> Any:
        """The student.

        Args:
            teacher: a causal LM; its weights are changed.
            folder: its own, for messages.
            texts: gives the text that layers, heads and channels are chosen by.
            say: is told which layers were chosen by text.

        Raises:
            StudentSpecError: there are no such parts, they cannot be taken out of this model, or the text is missing.
        """

        def read(tokens: int) -> Sequence[NDArray[Any]]:
            if texts is None:
                raise StudentSpecError(
                    f"layers by importance, {', '.join(_WIDTHS)} are chosen by the text of a cask, and there is none "
                    "here: make the student with `logitcask train`, and name its folder OUTPUT/initial as the student"
                )
            return texts(tokens)

        student = teacher
        try:
            self._require_layers(teacher)  # before it reads for minutes
            _require_numbers(teacher)
            if self.widths != Widths():
                student = self._narrowed(teacher, read)
            if self.layers is not None:
                student = _shallower(student, folder, self._numbers(student, read, say))
        except StudentSpecError:
            raise
        except ModelError as error:
            raise StudentSpecError(f"{folder}: {error}") from error
        student.generation_config = teacher.generation_config
        return student

    def _narrowed(self, teacher: Any, read: Texts) -> Any:
        """The teacher with the most important heads and channels only."""
        prefix = _layer_prefix(teacher, teacher.config.get_text_config().num_hidden_layers)
        shape = require_known(teacher, prefix)
        self.widths.require(shape)
        importance = measured(teacher, prefix, shape, read(self.tokens))
        return narrowed(teacher, prefix, shape, KeptUnits.of(importance, self.widths, shape), importance.shares)

    def _require_layers(self, model: Any) -> None:
        """Raise StudentSpecError where a model has fewer layers than are to be kept."""
        if isinstance(self.layers, int):
            spread_layers(model.config.get_text_config().num_hidden_layers, self.layers)

    def _numbers(self, model: Any, read: Texts, say: Callable[[str], None]) -> tuple[int, ...]:
        """Of the layers that are kept."""
        total = model.config.get_text_config().num_hidden_layers
        if not isinstance(self.layers, int):
            assert self.layers is not None
            return self.layers
        if self.by == "spacing" or self.layers == total:
            return spread_layers(total, self.layers)
        prefix = _layer_prefix(model, total)
        # It is read once with each layer left out, so that this takes as long as choosing heads does.
        text = read(max(self.tokens // total, 1))
        say(f"each of its {total} layers is left out of it in turn")
        numbers = most_important(layer_importance(model, prefix, text), self.layers)
        say(f"of {total} layers these are kept: {', '.join(map(str, numbers))}")
        return numbers


def _require_numbers(teacher: Any) -> None:
    """Raise ModelError where a weight holds NaN or infinity: whatever is computed of it is none, too."""
    for name, weight in teacher.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"the teacher's weight {name} holds NaN or infinity, so nothing can be told of its parts; fetch the "
                "model again"
            )


def _items(text: str) -> dict[str, list[str]]:
    """Names with what was written behind each; a list goes on until the next name."""
    names, items = ("layers", "by", *_WIDTHS, "tokens"), dict[str, list[str]]()
    last = ""
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals and last == "layers":
            items[last].append(name)
            continue
        if not equals or name not in names:
            raise StudentSpecError(
                f"{FROM_TEACHER}{text}: cannot read {part.strip()!r}; it takes {', '.join(names)}, as in "
                f"{FROM_TEACHER}layers=20,heads=6,mlp=1024"
            )
        if name in items:
            raise StudentSpecError(f"{FROM_TEACHER}{text}: {name} stands there twice")
        items[name], last = [value], name
    return items


def _count(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise StudentSpecError(f"{name}={value!r} is not a number of at least 1")
    return int(value)


def _parse_choice(text: str) -> LayerChoice:
    choices: tuple[LayerChoice, ...] = get_args(LayerChoice)
    for choice in choices:
        if text == choice:
            return choice
    raise StudentSpecError(f"by={text!r} is neither of {' and '.join(choices)}")


def _parse_layers(text: str) -> tuple[int, ...] | int:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise StudentSpecError(
            f"layers={text!r} is neither a number of layers nor a comma-separated list of layer numbers"
        )
    numbers = tuple(int(part) for part in parts)
    if len(numbers) == 1:
        return numbers[0]
    if list(numbers) != sorted(set(numbers)):
        raise StudentSpecError(f"layers={text!r} must name each layer once, in ascending order")
    return numbers


def spread_layers(total: int, count: int) -> tuple[int, ...]:
    """`count` layer numbers of 0..total-1, evenly spread, first and last among them (one layer: the first)."""
    if not 1 <= count <= total:
        raise StudentSpecError(f"{count} layers were asked for; the teacher has {total}, so 1 to {total} are possible")
    if count == 1:
        return (0,)
    return tuple(round(i * (total - 1) / (count - 1)) for i in range(count))


def _shallower(teacher: Any, folder: Path, numbers: tuple[int, ...]) -> Any:
    """A model of some of the layers, with their weights."""
    total = teacher.config.get_text_config().num_hidden_layers
    if numbers[-1] >= total:
        raise StudentSpecError(
            f"layer {numbers[-1]} was asked for; the teacher in {folder} has layers 0 to {total - 1}"
        )
    kept, prefix = KeptLayers(numbers=numbers, total=total), _layer_prefix(teacher, total)
    try:
        student = _fresh_of(teacher, kept)
        require_same_layers(teacher, student, prefix, kept)
        student.load_state_dict(_renumber(teacher.state_dict(), prefix, numbers), strict=True)
        require_same_behaviour(teacher, student, prefix, kept)
        require_config_lasts(student, teacher)
    except LayersDifferError as error:
        raise StudentSpecError(f"layers {','.join(map(str, numbers))} of {folder}: {error}") from error
    return student


def _fresh_of(teacher: Any, kept: KeptLayers) -> Any:
    """A fresh model of the kept layers.

    Raises:
        StudentSpecError: the config refuses to describe it.
    """
    try:
        return fresh_model(kept.config(teacher.config))
    except FAILURES as error:
        raise StudentSpecError(
            f"{type(teacher).__name__} cannot be built with {len(kept.numbers)} of its {kept.total} layers: {error}. "
            f"Its config places layers by {', '.join(layer_fields(teacher.config)) or 'their number'}"
        ) from error


def _layer_prefix(model: Any, total: int) -> str:
    """Name of the list that holds the layers, such as `model.layers`."""
    body = base_model(model)
    lists = [child for child in body.children() if isinstance(child, nn.ModuleList) and len(child) == total]
    for name, module in model.named_modules():
        if any(module is layers for layers in lists):
            return str(name)
    raise StudentSpecError(
        f"{type(model).__name__} keeps its {total} layers in no list directly under {type(body).__name__}; layers "
        "cannot be taken from it"
    )


def _renumber(weights: dict[str, torch.Tensor], prefix: str, kept: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Weights of the kept layers under their new numbers, and everything outside the layers."""
    new_number = {str(old): str(new) for new, old in enumerate(kept)}
    renamed = {}
    for name, value in weights.items():
        if not name.startswith(prefix + "."):
            renamed[name] = value
            continue
        number, _, rest = name.removeprefix(prefix + ".").partition(".")
        if number in new_number:
            renamed[f"{prefix}.{new_number[number]}.{rest}"] = value
    return renamed
