"""What a hint loss is: a value per position from a state of the student and the teacher's stored one.

Shape legend: T trained positions, D width of a state, W stored numbers of the teacher's (D, or N of codec proj:N).

A loss is a few parameters (the dataclass fields). Bound to a pair of layers it is a module, `term`, whose parameters
are trained beside the student and left out when the student is saved.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeVar

from torch import Tensor, nn

from logitcask_consumer.hints.layer_map import Depths, LayerPair, layer_pairs, require_map
from logitcask_consumer.losses.loss import Estimator, Formula
from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintKind

Projection = Literal["none", "auto", "learned"]
"""How a student's state becomes comparable: as it is, by a learned matrix where widths differ, or always by one."""


class HintMismatchError(LogitcaskError, ValueError):
    """Hints cannot serve a loss: the cask has none, of another kind or codec, or their width is not the student's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What a term compares."""

    of: HintKind
    student_width: int
    """D of the student."""
    teacher_width: int
    """D of the teacher."""
    projected: int | None = None
    """N of codec proj:N."""
    seed: int = 0
    """Of that projection."""
    student_parts: tuple[int, ...] = ()
    """Of projections: numbers of the query, key and value vectors that lie side by side, those that there are."""
    teacher_parts: tuple[int, ...] = ()
    filter_DD: Tensor | None = None
    """Of `ted`: the teacher's filter of the layer."""

    @property
    def stored(self) -> int:
        """W."""
        return self.projected or self.teacher_width


class HintTerm(nn.Module):
    """A hint loss between two layers."""

    @abstractmethod
    def forward(self, student_TD: Tensor, teacher_TW: Tensor, documents_T: Tensor) -> Tensor:
        """The loss at each position, [T].

        Args:
            student_TD: the student's state, float32 or float64.
            teacher_TW: the teacher's, as it is stored; of the same dtype.
            documents_T: number of the document of each position; those of a document follow each other.
        """


@dataclass(frozen=True, kw_only=True)
class HintLoss(Formula):
    """A loss on hints. Values are numbers without a unit, one per position and pair of layers, which add up."""

    summary: ClassVar[str]
    kinds: ClassVar[tuple[HintKind, ...]] = ("hidden",)
    """What of a teacher's layers it can compare."""
    whole_documents: ClassVar[bool] = False
    """Whether it compares positions of a document with each other, which must then lie in one sequence."""
    filtered: ClassVar[bool] = False
    """Whether it needs filters of the teacher's layers, see `filters`."""

    @property
    def estimator(self) -> Estimator:
        """Equal to the loss on the teacher's states, but for the codec."""
        return "exact"

    @property
    @abstractmethod
    def layers(self) -> str:
        """The map of layers, as written."""

    @abstractmethod
    def term(self, sides: Sides) -> HintTerm:
        """The loss between two layers.

        Raises:
            HintMismatchError: their widths do not fit each other.
        """

    def pairs(self, depths: Depths) -> tuple[LayerPair, ...]:
        """The pairs of layers; errors as `layer_pairs`."""
        return layer_pairs(self.layers, depths)

    def missing(self, capture: CaptureSpec) -> list[str]:
        """What the hints of a capture lack for the loss."""
        spec = capture.hints
        if spec is None:
            return ["hints (capture with hints, such as layers [-1]; docs/hints.md)"]
        missing = []
        if spec.positions != "all":
            missing.append(
                "a row per position (capture with hints.positions all: last is for `logitcask cask nearest`)"
            )
        if spec.of not in self.kinds:
            missing.append(f"hints of {' or '.join(self.kinds)} (capture with hints.of {self.kinds[0]})")
        return missing


@dataclass(frozen=True, kw_only=True)
class StateLoss(HintLoss):
    """A loss between hidden states of several layers, each position by itself."""

    map: str = "uniform"
    """See `layer_map`."""
    projection: Projection = "none"

    def __post_init__(self) -> None:
        """Raise LossParameterError for what is no map."""
        require_map(self.map)

    @property
    def layers(self) -> str:
        """The map."""
        return self.map


HINT_LOSSES: Final[dict[str, HintLoss]] = {}
"""Every hint loss with its default parameters, by name."""

H = TypeVar("H", bound=type[HintLoss])


def register_hint(loss: H) -> H:
    """Register a class of hint losses under its `name`; the first line of its docstring is its summary."""
    assert loss.name not in HINT_LOSSES, f"hint loss {loss.name} is registered twice"
    assert loss.__doc__, f"hint loss {loss.name} has no docstring"
    loss.summary = loss.__doc__.splitlines()[0]
    HINT_LOSSES[loss.name] = loss()
    return loss


def parts_text(parts: Sequence[int]) -> str:
    """Widths for messages."""
    return " + ".join(map(str, parts))
