"""What a run minimises: a weighted mix of losses, the weights perhaps scheduled.

"forward_kl", "0.9*forward_kl + 0.1*cross_entropy", "linear(1,0)*ghost_kl + linear(0,1)*js:beta=0.1".
"""

import re
from dataclasses import dataclass

from logitcask_consumer.losses.chunked import Terms
from logitcask_consumer.losses.cross_entropy import CrossEntropy
from logitcask_consumer.losses.loss import Loss, LossParameterError
from logitcask_consumer.losses.registry import get_loss, require
from logitcask_consumer.losses.schedule import Schedule
from logitcask_schemas.capture_spec import CaptureSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A mix of losses. Each trained position contributes its weighted sum; weights need not add up to 1."""

    weights: tuple[Schedule, ...]
    losses: tuple[Loss, ...]

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Read a mix: losses joined by "+", each with a weight and "*" before it, or with weight 1.

        Raises:
            UnknownLossError, LossParameterError: what is not understood.
        """
        weights, losses = [], []
        # A plus within a number ("1e+3") has no space before it.
        for part in re.split(r"\s\+\s", text.strip()):
            weight, times, spec = part.rpartition("*")
            losses.append(get_loss(spec))
            weights.append(Schedule.parse(weight if times else "1"))
            if weights[-1].least < 0:
                raise LossParameterError(f"{part!r}: the weight of a loss must not be negative")
        if len({loss.spec for loss in losses}) < len(losses):
            raise LossParameterError(f"{text!r} names a loss twice; add their weights")
        return cls(weights=tuple(weights), losses=tuple(losses))

    def with_cross_entropy(self, share: float) -> "Objective":
        """The mix at (1 - share) of its weight, with `share` of the cross-entropy with the realised tokens.

        Raises:
            LossParameterError: it has one already.
        """
        if share == 0.0:
            return self
        if any(isinstance(loss, CrossEntropy) for loss in self.losses):
            raise LossParameterError("a mix that has cross_entropy in it takes no further share of it (ce_weight)")
        scaled = (weight.times(1.0 - share) for weight in self.weights)
        return Objective(
            weights=(*scaled, Schedule.parse(str(share))), losses=(*self.losses, get_loss(CrossEntropy.name))
        )

    def terms(self, progress: float) -> Terms:
        """The losses with their weights at a part of the run done, from 0 to 1."""
        return [
            (weight.at(progress), loss.at(progress)) for weight, loss in zip(self.weights, self.losses, strict=True)
        ]

    def require(self, capture: CaptureSpec) -> None:
        """Refuse records that a loss of the mix cannot work with; LossMismatchError says what they lack."""
        for loss in self.losses:
            require(loss, capture)

    @property
    def temperature(self) -> float | None:
        """The temperature other than 1 whose log Z the records must hold; None where no loss needs one."""
        wanted = {loss.requires.temperature for loss in self.losses} - {None, 1.0}
        if len(wanted) > 1:
            raise LossParameterError(f"losses of one mix may name one temperature, got {sorted(filter(None, wanted))}")
        return wanted.pop() if wanted else None
