"""The product of weights that a run names: `assistant_only * teacher_entropy:most=3 * entropy_top:keep=0.2`.

Shape legend: P positions, T trained positions, B sequences, S slots of a sequence.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.weights.entropy_top import EntropyTop
from logitcask_consumer.weights.weight import Positions, RecordWeight, StoredAnswers, WeightParameterError, get_weight
from logitcask_schemas.record.capture_spec import CaptureSpec

_FACTOR: Final = re.compile(r'(?P<spec>(?:"(?:[^"\\]|\\.)*"|[^"*])*)(?:\*|$)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Factors that are known before the student has seen a position, and perhaps a selection by the student."""

    factors: tuple[RecordWeight, ...] = ()
    selection: EntropyTop | None = None

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read a product of weights, joined by "*"; None is no weight at all.

        Raises:
            UnknownWeightError, WeightParameterError: what is not understood, is named twice, or does not go together.
        """
        if text is None:
            return cls()
        specs, at = list[str](), 0
        while at < len(text) or not specs or text[at - 1] == "*":
            factor = _FACTOR.match(text, at)
            if factor is None:
                raise WeightParameterError(f"{text!r}: a double quote is not closed")
            specs.append(factor["spec"])
            if factor.end() == len(text) and not factor[0].endswith("*"):
                break
            at = factor.end()
        weights = [get_weight(spec) for spec in specs]
        selections = [weight for weight in weights if isinstance(weight, EntropyTop)]
        factors = tuple(weight for weight in weights if isinstance(weight, RecordWeight))
        if len({weight.spec for weight in weights}) < len(weights) or len(selections) > 1:
            raise WeightParameterError(f"{text!r} names a weight twice")
        if selections and (graded := [weight.name for weight in factors if weight.graded]):
            # The sum of weights must be known before the first micro-batch of a step, or it would not be exact.
            raise WeightParameterError(
                f"{text!r}: {EntropyTop.name} counts positions before the student has chosen them, so it goes with "
                f"weights of 0 and 1 only, not with {', '.join(graded)}"
            )
        return cls(factors=factors, selection=selections[0] if selections else None)

    def __bool__(self) -> bool:
        return bool(self.factors) or self.selection is not None

    def bind(self, tokenizer: Any, answers: StoredAnswers | None = None) -> Self:
        """The same weights for a tokenizer and documents; see `Weight.bind`."""
        return replace(self, factors=tuple(weight.bind(tokenizer, answers) for weight in self.factors))

    def require(self, capture: CaptureSpec, *, where: str) -> None:
        """Refuse records that lack what a weight reads.

        Args:
            capture: of the records.
            where: the cask, for the message.

        Raises:
            WeightParameterError: the records hold a lower bound of the teacher's entropy only, and a weight follows
                from it.
        """
        names = [weight.name for weight in self.factors if weight.reads_entropy]
        if names and capture.entropy_is_bound:
            origin = (
                "was imported from another tool's top-k"
                if capture.imported
                else "holds the top-k of a teacher that was served elsewhere"
            )
            raise WeightParameterError(
                f"{where}: weight {names[0]!r} needs the teacher's entropy, and this cask {origin}, of which a lower "
                "bound is known only. Take tail_mass:most=..., which is exact there, or capture with logitcask's own "
                "engines"
            )

    def notes(self, answers: StoredAnswers) -> list[str]:
        """What people should know of these weights with these documents, a sentence each."""
        return [note for weight in self.factors for note in weight.notes(answers)]

    @property
    def spec(self) -> str:
        """The product as `parse` reads it."""
        selection = [] if self.selection is None else [self.selection]
        return " * ".join(weight.spec for weight in (*self.factors, *selection))

    def contents(self) -> dict[str, str]:
        """Digest of what each weight reads besides its parameters, where there is such a thing."""
        return {weight.name: digest for weight in self.factors if (digest := weight.content()) is not None}

    def of(self, positions: Positions) -> NDArray[np.float32] | None:
        """The product of the factors, [P]; None where there is none."""
        if not self.factors:
            return None
        product_P = np.ones(positions.records.num_positions, dtype=np.float32)
        for weight in self.factors:
            product_P *= weight.of(positions)
        return product_P

    def total(self, weights_T: Tensor | None, slots_T: Tensor, width: int) -> Tensor:
        """Sum of the weights of a batch, known before the student runs; float64, a scalar.

        Args:
            weights_T: what `of` gave for the positions left; None for 1.
            slots_T: flat index b·S + s of each.
            width: S.
        """
        if self.selection is not None:
            return self.selection.kept(torch.bincount(slots_T // width)).sum().to(torch.float64)
        if weights_T is None:
            return torch.tensor(len(slots_T), dtype=torch.float64, device=slots_T.device)
        return weights_T.sum(dtype=torch.float64)
