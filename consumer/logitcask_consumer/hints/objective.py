"""Hint losses and their weights, as they are written: "pkd:map=uniform@1.0 + cosine:layer=last@0.5"."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from logitcask_consumer.hints.hint_loss import HINT_LOSSES, HintLoss, HintMismatchError
from logitcask_consumer.losses import CrossEntropy, LossParameterError
from logitcask_consumer.losses.mix import Mix, split_sum
from logitcask_schemas.record.capture_spec import CaptureSpec

_KIND: Final = " of hints (a weight stands behind it: cosine@0.5)"


@dataclass(frozen=True, slots=True, kw_only=True)
class HintObjective(Mix[HintLoss]):
    """Hint losses, whose weighted sum is added to the loss on the teacher's distribution."""

    registry: ClassVar[Mapping[str, HintLoss]] = HINT_LOSSES
    cross_entropy: ClassVar[Any] = CrossEntropy()
    what: ClassVar[str] = _KIND

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read losses joined by "+", each with "@" and a weight behind it, or weight 1; weights may be schedules.

        Raises:
            UnknownLossError, LossParameterError: what is not understood.
        """
        parts = [part.rpartition("@") for part in split_sum(text)]
        written = [(spec, weight) if at else (weight, "1") for spec, at, weight in parts]
        if missing := [number for number, (spec, _) in enumerate(written, start=1) if not spec.strip()]:
            raise LossParameterError(
                f"hints {text!r}: loss number {missing[0]} is missing; write pkd:map=uniform@1.0 + cosine@0.5"
            )
        weighted = [(weight, spec.strip()) for spec, weight in written]
        objective = cls.of_parts(weighted, text)
        if len([loss for loss in objective.losses if loss.filtered]) > 1:
            raise LossParameterError(f"hints {text!r}: one ted is enough, a run makes its filters once; give it a list")
        return objective

    @property
    def filtered(self) -> bool:
        """Whether a loss needs filters of the teacher's layers."""
        return any(loss.filtered for loss in self.losses)

    def require(self, capture: CaptureSpec) -> None:
        """Refuse hints that a loss of the mix cannot work with.

        Raises:
            HintMismatchError: what is missing, and how to capture it.
        """
        for loss in self.losses:
            if missing := loss.missing(capture):
                stored = "no hints" if capture.hints is None else f"hints {capture.hints.model_dump(mode='json')}"
                fitting = sorted(name for name, other in HINT_LOSSES.items() if not other.missing(capture))
                others = f". Hint losses that fit: {', '.join(fitting)}" if fitting else ""
                raise HintMismatchError(
                    f"hint loss {loss.spec!r} needs {' and '.join(missing)}; this cask has {stored}{others}"
                )

    @property
    def whole_documents(self) -> list[str]:
        """Losses that need whole documents, as written."""
        return [loss.spec for loss in self.losses if loss.whole_documents]
