"""Students that are made of the teacher's own weights: some of its layers, of its heads, of the channels of each layer.

Written as `from-teacher:` and what is kept, joined by commas; see `TeacherParts`. Widths go first, on the whole
teacher: what is important in a layer is measured where the layer stands. Layers are taken from what is left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import torch
from numpy.typing import NDArray
from torch import nn

from logitcask_consumer.head import base_model
from logitcask_consumer.student.importance import measured
from logitcask_consumer.student.kept_layers import KeptLayers, layer_fields
from logitcask_consumer.student.kept_units import KeptUnits, Widths, require_known
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
"""Tokens of text by which heads and channels are chosen."""
_WIDTHS: Final = ("heads", "mlp", "hidden")

Texts = Callable[[int], Sequence[NDArray[Any]]]
"""Gives documents of about so many tokens in all: token ids, each [L]."""


class StudentSpecError(ModelError):
    """A student's description cannot be followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherParts:
    """What a student keeps of its teacher; None: all of it.

    from-teacher:layers=10                     10 layers, evenly spread, the first and the last among them
    from-teacher:layers=0,4,9                  exactly these layers
    from-teacher:heads=6,mlp=1024              6 attention heads and 1,024 channels of the MLP in each layer
    from-teacher:layers=20,hidden=384,tokens=65536   20 layers, 384 hidden channels, chosen by 65,536 tokens
    """

    layers: tuple[int, ...] | int | None = None
    """Their numbers, or how many."""
    widths: Widths = field(default_factory=Widths)
    tokens: int = TEXT_TOKENS
    """Of text, by which heads and channels are chosen."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what stands behind `from-teacher:`.

        Raises:
            StudentSpecError: a name is not known, stands there twice, or has no number.
        """
        items = _items(text)
        layers = _parse_layers(",".join(items["layers"])) if "layers" in items else None
        numbers = {name: _count(name, values[0]) for name, values in items.items() if name != "layers"}
        widths = Widths(**{name: numbers[name] for name in _WIDTHS if name in numbers})
        if "tokens" in numbers and widths == Widths():
            raise StudentSpecError(
                f"{FROM_TEACHER}{text}: tokens says how much text chooses heads and channels, and none are chosen; "
                f"name {', '.join(_WIDTHS)} too, or leave it out"
            )
        return cls(layers=layers, widths=widths, tokens=numbers.get("tokens", TEXT_TOKENS))

    @property
    def needs_text(self) -> bool:
        """Whether heads or channels are to be chosen."""
        return self.widths != Widths()

    def student(self, teacher: Any, folder: Path, texts: Texts | None) -> Any:
        """The student.

        Args:
            teacher: a causal LM; its weights are changed.
            folder: its own, for messages.
            texts: gives the text that heads and channels are chosen by.

        Raises:
            StudentSpecError: there are no such parts, they cannot be taken out of this model, or the text is missing.
        """
        student = teacher
        if self.needs_text:
            if texts is None:
                raise StudentSpecError(
                    f"{', '.join(_WIDTHS)} are chosen by the text of a cask, and there is none here: make the student "
                    "with `logitcask train`, and name its folder OUTPUT/initial as the student"
                )
            student = self._narrowed(teacher, folder, texts)
        if self.layers is not None:
            student = _shallower(student, folder, self.layers)
        student.generation_config = teacher.generation_config
        return student

    def _narrowed(self, teacher: Any, folder: Path, texts: Texts) -> Any:
        """The teacher with the most important heads and channels only."""
        try:
            prefix = _layer_prefix(teacher, teacher.config.get_text_config().num_hidden_layers)
            shape = require_known(teacher, prefix)
            self.widths.require(shape)
            importance = measured(teacher, prefix, shape, texts(self.tokens))
            return narrowed(teacher, prefix, shape, KeptUnits.of(importance, self.widths, shape), importance.shares)
        except StudentSpecError:
            raise
        except ModelError as error:
            raise StudentSpecError(f"{folder}: {error}") from error


def _items(text: str) -> dict[str, list[str]]:
    """Names with what was written behind each; a list goes on until the next name."""
    names, items = ("layers", *_WIDTHS, "tokens"), dict[str, list[str]]()
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


def _shallower(teacher: Any, folder: Path, layers: tuple[int, ...] | int) -> Any:
    """A model of some of the layers, with their weights."""
    total = teacher.config.get_text_config().num_hidden_layers
    numbers = spread_layers(total, layers) if isinstance(layers, int) else layers
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
