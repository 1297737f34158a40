"""What a loss is: a formula over a few values per position, with what it reads and what it needs of the records.

Shape legend: R rows of a block, V vocabulary size, T trained positions of a batch.

A loss never sees the [R, V] logits. It reads the student's log-probabilities at the record's entries and, where it says
so in `needs`, a few reductions over the vocabulary (`StudentRows`), and returns one value per row as a differentiable
function of them. What a gradient for those values means for the logits is worked out once, in `dense`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, TypeAlias, TypeVar

from torch import Tensor

from logitcask_consumer.losses.student_rows import Needs, StudentRows
from logitcask_consumer.losses.target import SparseTarget
from logitcask_consumer.notation import read_named, write_named
from logitcask_schemas.errors import LogitcaskError, OptionError
from logitcask_schemas.record.capture_spec import CaptureSpec

Estimator = Literal["exact", "unbiased", "consistent", "bound", "biased"]
"""What a loss and its gradient on records are to the dense loss: equal to it, equal in expectation, equal in the limit
of many draws, a lower bound of it, or none of these."""

Tail = Literal["draws", "ghost"]
"""How a divergence sees the teacher's tail: by the draws, without bias, or as one bucket of mass r, a lower bound."""


class UnknownLossError(OptionError, KeyError):
    """A loss was named that is not registered."""

    def __str__(self) -> str:
        return str(self.args[0])


class LossParameterError(OptionError, ValueError):
    """A loss was given a parameter that it does not have or that is out of range."""


class LossMismatchError(LogitcaskError, ValueError):
    """A loss was asked of records that cannot support it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requires:
    """What a loss needs of the records; each field has the capture option that provides it."""

    head: bool = True
    """A head chosen by probability: any mode but `sampled`, whose head is the next token alone."""
    head_entries: int = 1
    """Most entries of the head that are read: `k` of mode `topk`, `head_max` of mode `threshold`."""
    draws: bool = False
    """Draws from the tail: mode `threshold` or `sampled`."""
    tail_logprobs: bool = False
    """log t of the draws: `tail_logprobs`."""
    temperature: float | None = None
    """log Z at this temperature: `temperatures`."""
    samples: bool = False
    """log q of the tokens as the student sampled them, which `logitcask rounds` keeps beside the records."""


@dataclass(frozen=True, kw_only=True)
class Formula(ABC):
    """What losses of every method have in common: a name, parameters (the dataclass fields), and needs of records."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def estimator(self) -> Estimator:
        """What the loss is to its dense counterpart, given its parameters."""

    @abstractmethod
    def missing(self, capture: CaptureSpec) -> list[str]:
        """What records of this capture spec lack for the loss, each with the capture option that provides it."""

    def at(self, progress: float) -> Self:
        """The loss at a part of the run done, from 0 to 1; itself, unless a parameter of it follows a schedule."""
        del progress
        return self

    @property
    def spec(self) -> str:
        """The loss as it is written: its name and the parameters that differ from their defaults."""
        return write_named(self.name, self)


@dataclass(frozen=True, kw_only=True)
class Loss(Formula):
    """A loss on the teacher's tokens. Values are in nats, one per row."""

    summary: ClassVar[str]
    kl_value: ClassVar[bool] = False
    """Whether the value minus the teacher's entropy H(t) estimates KL(teacher || student)."""

    @property
    def needs(self) -> Needs:
        """What the formula reads of the student besides the log-probabilities at the record's entries."""
        return Needs()

    @property
    def requires(self) -> Requires:
        """What the records must hold."""
        return Requires()

    @property
    def temperature(self) -> float:
        """T of the student's softmax(z / T) that the formula reads."""
        return 1.0

    @abstractmethod
    def per_row(self, student: StudentRows, target: SparseTarget, scale_R: Tensor | None) -> Tensor:
        """The loss of each row, [R], differentiable in the values of `student`.

        Args:
            student: R rows of the student.
            target: R rows of the teacher.
            scale_R: the rows' part of what `row_scale` returned.
        """

    def row_scale(self, target: SparseTarget) -> Tensor | None:
        """A factor per row that takes the whole batch to know, [T]; None for most losses."""
        del target
        return None

    def missing(self, capture: CaptureSpec) -> list[str]:
        """What records of this capture spec lack for the loss, each with the capture option that provides it."""
        needs, missing = self.requires, list[str]()
        if needs.head and capture.mode == "sampled":
            missing.append("a head of likely tokens (capture with mode 'threshold' or 'topk')")
        option, entries = ("k", capture.k) if capture.mode == "topk" else ("head_max", capture.head_max)
        if capture.mode != "sampled" and entries < needs.head_entries:
            missing.append(f"heads of {needs.head_entries} entries (capture with {option}={needs.head_entries})")
        if needs.draws and capture.mode == "topk":
            missing.append("draws from the tail (capture with mode 'threshold' or 'sampled')")
        if needs.tail_logprobs and (capture.mode == "topk" or not capture.tail_logprobs):
            missing.append("log-probabilities of the tail draws (capture with tail_logprobs=true)")
        if needs.temperature not in (None, 1.0, *capture.temperatures):
            missing.append(
                f"log Z at temperature {needs.temperature:g} (capture with temperatures=[{needs.temperature:g}])"
            )
        return missing


def in_range(loss: Formula, name: str, low: float, high: float, *, open_ends: bool = False) -> None:
    """Refuse a parameter outside [low, high], or outside (low, high).

    Raises:
        LossParameterError: it is outside.
    """
    value = getattr(loss, name)
    inside = low < value < high if open_ends else low <= value <= high
    if not inside:
        kind = "strictly between" if open_ends else "between"
        raise LossParameterError(f"loss {loss.name!r}: {name} must lie {kind} {low:g} and {high:g}, got {value:g}")


LOSSES: dict[str, Loss] = {}
"""Every registered name with its default parameters."""

L = TypeVar("L", bound=type[Loss])
F = TypeVar("F", bound=Formula)


def register(loss: L) -> L:
    """Register a class of losses under its `name`; the first line of its docstring is its summary.

    One that samples the tail by default is registered a second time, as ghost_<name>, with tail=ghost.
    """
    assert loss.name not in LOSSES, f"loss {loss.name} is registered twice"
    assert loss.__doc__, f"loss {loss.name} has no docstring"
    loss.summary = loss.__doc__.splitlines()[0]
    LOSSES[loss.name] = default = loss()
    if getattr(default, "tail", None) == "draws":
        LOSSES[f"ghost_{loss.name}"] = replace(default, tail="ghost")  # type: ignore[call-arg]
    return loss


def get_loss(spec: str) -> Loss:
    """A loss by its name, or with parameters: "js:beta=0.1,tail=ghost"; errors as `read_loss`."""
    return read_loss(spec, LOSSES)


def read_loss(text: str, registry: Mapping[str, F], *, kind: str = "") -> F:
    """A loss of a registry, as `Formula.spec` writes it.

    Args:
        text: its name, perhaps with parameters.
        registry: losses with their default parameters, by name.
        kind: of these losses, for messages.

    Raises:
        UnknownLossError: no such loss; the message lists those there are.
        LossParameterError: it has no such parameter, or the value is not one it can have.
    """
    return read_named(text, registry, what="loss", unknown=UnknownLossError, wrong=LossParameterError, kind=kind)


Terms: TypeAlias = Sequence[tuple[float, Loss]]
"""A mix of losses, each with its weight."""
