"""A weighted mix of losses: "0.9*forward_kl + 0.1*cross_entropy", "linear(1,0)*ghost_kl + linear(0,1)*js:beta=0.1"."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar

from logitcask_consumer.losses.schedule import Schedule
from logitcask_consumer.losses.spec import LossParameterError

L = TypeVar("L")

_PLUS: Final = re.compile(r"(?<=.)(?<![=*(,])(?<![\d.][eE])\+(?![^(]*\))")
"""Between two losses, not the sign of a number: "+0.5", "beta=+0.5", "1e+3", "linear(1e+3,0)"."""


def split_mix(text: str) -> list[tuple[str, str]]:
    """Weight and loss of each part of a mix, as written; the weight is "1" where none is.

    Raises:
        LossParameterError: nothing stands before or behind a "+".
    """
    parts = [part.rpartition("*") for part in _PLUS.split(text.strip())]
    if len(parts) > 1 and (missing := [at for at, (_, _, spec) in enumerate(parts, start=1) if not spec.strip()]):
        raise LossParameterError(f'{text!r}: loss number {missing[0]} is missing; a mix is "0.9*LOSS + 0.1*LOSS"')
    return [(weight if times else "1", spec.strip()) for weight, times, spec in parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix(Generic[L]):
    """Losses and their weights, perhaps scheduled, of which the weighted sum counts; weights need not add up to 1."""

    weights: tuple[Schedule, ...]
    losses: tuple[L, ...]

    @classmethod
    def read(cls, text: str, get: Callable[[str], L], name_of: Callable[[L], str]) -> Self:
        """Read losses joined by "+", each with a weight and "*" before it, or with weight 1.

        Args:
            text: what was written.
            get: reads a loss.
            name_of: what no two losses of a mix may share.

        Raises:
            UnknownLossError, LossParameterError: what is not understood.
        """
        weights, losses = list[Schedule](), list[L]()
        for weight, spec in split_mix(text):
            losses.append(get(spec))
            weights.append(Schedule.parse(weight))
            if weights[-1].least < 0:
                raise LossParameterError(f"{spec!r}: the weight of a loss must not be negative")
        if len(set(map(name_of, losses))) < len(losses):
            raise LossParameterError(f"{text!r} names a loss twice; add their weights")
        return cls(weights=tuple(weights), losses=tuple(losses))

    def shared_with(self, share: float, anchor: L) -> Self:
        """The mix at (1 - share) of its weight, and `share` of another loss.

        Raises:
            LossParameterError: that loss is in the mix already.
        """
        if share == 0.0:
            return self
        if any(type(loss) is type(anchor) for loss in self.losses):
            loss: Any = anchor
            raise LossParameterError(f"a mix that has {loss.name} in it takes no further share of it (ce_weight)")
        scaled = (weight.times(1.0 - share) for weight in self.weights)
        return type(self)(weights=(*scaled, Schedule.parse(str(share))), losses=(*self.losses, anchor))
