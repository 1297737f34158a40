"""Mixes of losses, and their weights, which may change while a run goes on."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from logitcask_consumer.losses.formulas.cross_entropy import CrossEntropy
from logitcask_consumer.losses.loss import (
    LOSSES,
    Formula,
    Loss,
    LossMismatchError,
    LossParameterError,
    read_loss,
)
from logitcask_schemas.record.capture_spec import CaptureSpec

_CALL: Final = re.compile(r"(?P<name>[a-z]+)\((?P<arguments>[^()]*)\)")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A piecewise linear function of the run's progress from 0 to 1.

    "0.3" is constant; "linear(a,b)" goes from a to b; "wsd(peak,warmup,decay)" rises from 0 to the peak over the first
    `warmup` of the run (0.1), stays, and falls to 0 over the last `decay` (0.2), after Peng et al., arXiv 2410.16215.
    """

    points: tuple[tuple[float, float], ...]
    """(progress, value), ascending."""

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read a schedule.

        Raises:
            LossParameterError: it is none.
        """
        text = text.strip()
        try:
            call = _CALL.fullmatch(text)
            numbers = [float(part) for part in (text if call is None else call["arguments"]).split(",")]
        except ValueError:
            raise _not_a_schedule(text) from None
        if not all(map(math.isfinite, numbers)):
            raise LossParameterError(f"{text!r}: a weight must be finite")
        if call is None and len(numbers) == 1:
            return cls(((0.0, numbers[0]),))
        if call is None:
            raise _not_a_schedule(text)
        if call["name"] == "linear" and len(numbers) == 2:
            return cls(((0.0, numbers[0]), (1.0, numbers[1])))
        if call["name"] == "wsd" and 1 <= len(numbers) <= 3:
            peak, warmup, decay = (*numbers, *(0.1, 0.2)[len(numbers) - 1 :])
            if warmup < 0 or decay < 0 or warmup + decay > 1:
                raise LossParameterError(f"{text}: warmup and decay are parts of the run, together at most 1")
            return cls(((0.0, 0.0), (warmup, peak), (1.0 - decay, peak), (1.0, 0.0)))
        raise _not_a_schedule(text)

    def at(self, progress: float) -> float:
        """The value at a part of the run done, from 0 to 1."""
        before = [point for point in self.points if point[0] <= progress] or [self.points[0]]
        after = [point for point in self.points if point[0] > progress] or [self.points[-1]]
        (start, low), (stop, high) = before[-1], after[0]
        return high if stop <= start else low + (high - low) * (progress - start) / (stop - start)

    @property
    def least(self) -> float:
        """The least value that it takes."""
        return min(value for _, value in self.points)

    def times(self, factor: float) -> "Schedule":
        """The same shape, every value times a factor."""
        return Schedule(tuple((at, factor * value) for at, value in self.points))


def _not_a_schedule(text: str) -> LossParameterError:
    return LossParameterError(
        f"{text!r} is no weight: give a number, linear(from,to), or wsd(peak,warmup,decay) with the parts of the run "
        "that warm-up and decay take"
    )


L = TypeVar("L", bound=Formula)

_PLUS: Final = re.compile(r"(?<=.)(?<![=*@(,])(?<![\d.][eE])\+(?![^(]*\))")
"""Between two losses, not the sign of a number: "+0.5", "beta=+0.5", "1e+3", "linear(1e+3,0)"."""


def split_sum(text: str) -> list[str]:
    """The parts of a sum, as written between its "+"."""
    return _PLUS.split(text.strip())


def split_mix(text: str) -> list[tuple[str, str]]:
    """Weight and loss of each part of a mix, as written; the weight is "1" where none is.

    Raises:
        LossParameterError: nothing stands before or behind a "+".
    """
    parts = [part.rpartition("*") for part in split_sum(text)]
    if len(parts) > 1 and (missing := [at for at, (_, _, spec) in enumerate(parts, start=1) if not spec.strip()]):
        raise LossParameterError(f'{text!r}: loss number {missing[0]} is missing; a mix is "0.9*LOSS + 0.1*LOSS"')
    return [(weight if times else "1", spec.strip()) for weight, times, spec in parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix(Generic[L]):
    """Losses and their weights, perhaps scheduled, of which the weighted sum counts; weights need not add up to 1."""

    registry: ClassVar[Mapping[str, Any]]
    """Losses that the mix may name, with their default parameters."""
    cross_entropy: ClassVar[Any]
    """The loss that `with_cross_entropy` adds."""
    what: ClassVar[str] = ""
    """What kind of losses these are, for messages."""
    told_apart_by: ClassVar[str] = "spec"
    """Attribute that no two losses of a mix may share."""

    weights: tuple[Schedule, ...]
    losses: tuple[L, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read losses joined by "+", each with a weight and "*" before it, or with weight 1.

        Raises:
            UnknownLossError, LossParameterError: what is not understood.
        """
        return cls.of_parts(split_mix(text), text)

    @classmethod
    def of_parts(cls, parts: Sequence[tuple[str, str]], text: str) -> Self:
        """The mix of these weights and losses, as written; `text` is all of it, for messages. Errors as `parse`."""
        weights, losses = list[Schedule](), list[L]()
        for weight, spec in parts:
            losses.append(read_loss(spec, cls.registry, kind=cls.what))
            weights.append(Schedule.parse(weight))
            if weights[-1].least < 0:
                raise LossParameterError(f"{spec!r}: the weight of a loss must not be negative")
        if len(set(map(attrgetter(cls.told_apart_by), losses))) < len(losses):
            raise LossParameterError(f"{text!r} names a loss twice; add their weights")
        return cls(weights=tuple(weights), losses=tuple(losses))

    def with_cross_entropy(self, share: float) -> Self:
        """The mix at (1 - share) of its weight, with `share` of the cross-entropy with the student's own tokens.

        Raises:
            LossParameterError: it has one already, or the share is none.
        """
        if not 0.0 <= share <= 1.0:
            raise LossParameterError(f"ce_weight is a share, between 0 and 1, got {share}")
        if share == 0.0:
            return self
        if any(type(loss) is type(self.cross_entropy) for loss in self.losses):
            name = self.cross_entropy.name
            raise LossParameterError(f"a mix that has {name} in it takes no further share of it (ce_weight)")
        scaled = (weight.times(1.0 - share) for weight in self.weights)
        return type(self)(weights=(*scaled, Schedule.parse(str(share))), losses=(*self.losses, self.cross_entropy))

    def terms(self, progress: float) -> list[tuple[float, L]]:
        """The losses with their weights at a part of the run done, from 0 to 1."""
        return [
            (weight.at(progress), loss.at(progress)) for weight, loss in zip(self.weights, self.losses, strict=True)
        ]

    def require(self, capture: CaptureSpec) -> None:
        """Refuse records that a loss of the mix cannot work with.

        Raises:
            LossMismatchError: what is missing, the capture option that would have provided it, and the losses that fit.
        """
        origin = ", imported from another tool's cache" if capture.imported else ""
        for loss in self.losses:
            if missing := loss.missing(capture):
                fitting = sorted(name for name, other in self.registry.items() if not other.missing(capture))
                raise LossMismatchError(
                    f"loss {loss.spec!r} needs {' and '.join(missing)}; this cask was captured with mode "
                    f"{capture.mode!r}, tail_logprobs={str(capture.tail_logprobs).lower()}, "
                    f"temperatures={list(capture.temperatures)}{origin}. Losses that fit it: {', '.join(fitting)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective(Mix[Loss]):
    """A mix of losses on the teacher's tokens."""

    registry: ClassVar[Mapping[str, Loss]] = LOSSES
    cross_entropy: ClassVar[Loss] = CrossEntropy()

    @property
    def needs_samples(self) -> bool:
        """Whether a loss reads how likely the student was to write what it wrote; see `Requires.samples`."""
        return any(loss.requires.samples for loss in self.losses)

    @property
    def temperature(self) -> float | None:
        """The temperature other than 1 whose log Z the records must hold; None where no loss needs one.

        Raises:
            LossParameterError: two losses need different ones.
        """
        temperatures = {loss.requires.temperature for loss in self.losses} - {None, 1.0}
        if len(temperatures) > 1:
            named = sorted(filter(None, temperatures))
            raise LossParameterError(f"losses of one mix may name one temperature, got {named}")
        return temperatures.pop() if temperatures else None
