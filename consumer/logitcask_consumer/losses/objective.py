"""What a run minimises: a weighted mix of losses on the records of a student's own tokens."""

from dataclasses import dataclass
from operator import attrgetter

from logitcask_consumer.losses.chunked import Terms
from logitcask_consumer.losses.cross_entropy import CrossEntropy
from logitcask_consumer.losses.loss import Loss
from logitcask_consumer.losses.mix import Mix
from logitcask_consumer.losses.registry import get_loss, require
from logitcask_consumer.losses.spec import LossParameterError
from logitcask_schemas.capture_spec import CaptureSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective(Mix[Loss]):
    """A mix of losses."""

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Read a mix; see `Mix.read`.

        Raises:
            UnknownLossError, LossParameterError: what is not understood.
        """
        return cls.read(text, get_loss, attrgetter("spec"))

    def with_cross_entropy(self, share: float) -> "Objective":
        """The mix at (1 - share) of its weight, with `share` of the cross-entropy with the realised tokens.

        Raises:
            LossParameterError: it has one already.
        """
        return self.shared_with(share, CrossEntropy())

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
