"""What a run with two tokenizers minimises: a weighted mix of chunk losses, in the words of `losses.objective`."""

import re
from dataclasses import dataclass, fields, replace
from typing import Final, get_args, get_type_hints

from logitcask_consumer.cross_tokenizer.alm import Alm
from logitcask_consumer.cross_tokenizer.chunk_head import ChunkTerms
from logitcask_consumer.cross_tokenizer.loss import ChunkLoss
from logitcask_consumer.cross_tokenizer.next_token import NextToken
from logitcask_consumer.cross_tokenizer.uld import Uld
from logitcask_consumer.losses.loss import LossParameterError
from logitcask_consumer.losses.registry import LossMismatchError, UnknownLossError
from logitcask_consumer.losses.schedule import Schedule
from logitcask_schemas.capture_spec import CaptureSpec

CHUNK_LOSSES: Final[dict[str, ChunkLoss]] = {loss.name: loss for loss in (Alm(), NextToken(), Uld())}
_OWN: Final = CHUNK_LOSSES.keys() - {NextToken.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkObjective:
    """A mix of chunk losses."""

    weights: tuple[Schedule, ...]
    losses: tuple[ChunkLoss, ...]

    @staticmethod
    def names_one(text: str) -> bool:
        """Whether a mix holds a loss that needs aligned chunks."""
        return any(spec.partition(":")[0] in _OWN for _, spec in _terms(text))

    @classmethod
    def parse(cls, text: str) -> "ChunkObjective":
        """Read a mix: "alm", "0.7*alm:temperature=50 + 0.3*cross_entropy".

        Raises:
            UnknownLossError, LossParameterError: what is not understood, or compares token ids.
        """
        weights, losses = [], []
        for weight, spec in _terms(text):
            losses.append(_loss(spec))
            weights.append(Schedule.parse(weight))
            if weights[-1].least < 0:
                raise LossParameterError(f"{spec!r}: the weight of a loss must not be negative")
        if len({loss.name for loss in losses}) < len(losses):
            raise LossParameterError(f"{text!r} names a loss twice; add their weights")
        return cls(weights=tuple(weights), losses=tuple(losses))

    def with_cross_entropy(self, share: float) -> "ChunkObjective":
        """The mix at (1 - share) of its weight, with `share` of the cross-entropy with the student's tokens.

        Raises:
            LossParameterError: it has one already.
        """
        if share == 0.0:
            return self
        if any(isinstance(loss, NextToken) for loss in self.losses):
            raise LossParameterError("a mix that has cross_entropy in it takes no further share of it (ce_weight)")
        scaled = (weight.times(1.0 - share) for weight in self.weights)
        return ChunkObjective(weights=(*scaled, Schedule.parse(str(share))), losses=(*self.losses, NextToken()))

    def terms(self, progress: float) -> ChunkTerms:
        """The losses with their weights at a part of the run done, from 0 to 1."""
        return [(weight.at(progress), loss) for weight, loss in zip(self.weights, self.losses, strict=True)]

    def require(self, capture: CaptureSpec) -> None:
        """Refuse records that a loss of the mix cannot work with.

        Raises:
            LossMismatchError: says what they lack.
        """
        for loss in self.losses:
            if missing := loss.missing(capture):
                raise LossMismatchError(
                    f"loss {loss.spec!r} needs {' and '.join(missing)}; this cask was captured with mode "
                    f"{capture.mode!r}"
                )

    @property
    def threshold(self) -> float:
        """Up to which mass on new words chunks are joined; negative: never."""
        return max(loss.threshold for loss in self.losses)

    @property
    def reads_top(self) -> bool:
        """Whether a loss reads the teacher's largest probabilities."""
        return any(loss.reads_top for loss in self.losses)


def _terms(text: str) -> list[tuple[str, str]]:
    """Weight and loss of each part of a mix."""
    # A plus within a number ("1e+3") has no space before it.
    parts = [part.rpartition("*") for part in re.split(r"\s\+\s", text.strip())]
    return [(weight if times else "1", spec.strip()) for weight, times, spec in parts]


def _loss(spec: str) -> ChunkLoss:
    name, _, rest = spec.partition(":")
    if name not in CHUNK_LOSSES:
        raise UnknownLossError(
            f"{name!r} is no loss for aligned chunks; in a mix with alm or uld there are: "
            f"{', '.join(sorted(CHUNK_LOSSES))}"
        )
    loss, given = CHUNK_LOSSES[name], dict[str, object]()
    types = get_type_hints(type(loss))
    known = [f.name for f in fields(loss)]
    for part in filter(None, rest.split(",")):
        key, equals, text = part.partition("=")
        if not equals or key not in known:
            has = ", ".join(known) or "none"
            raise LossParameterError(f"loss {name!r} has no parameter {part!r}; it has: {has}, given as name=value")
        choices = get_args(types[key])
        if choices and text not in choices:
            raise LossParameterError(f"loss {name!r}: {key} is one of {', '.join(choices)}, got {text!r}")
        try:
            given[key] = text if choices else float(text)
        except ValueError:
            raise LossParameterError(f"loss {name!r}: {key} is a number, got {text!r}") from None
    return replace(loss, **given)
