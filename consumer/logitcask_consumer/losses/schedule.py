"""Weights that change while a run goes on: a number, a line, or warm-up, plateau and decay."""

import math
import re
from dataclasses import dataclass
from typing import Final

from logitcask_consumer.losses.spec import LossParameterError

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
