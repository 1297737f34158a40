"""Evaluations of a run on held-out documents: the best has a checkpoint, and training ends when they stand still.

What they came to is read from the log that transformers' state keeps, which every checkpoint holds: a run that goes on
knows them as one that was never interrupted does, on every process.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from transformers import TrainerCallback


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations:
    """One figure of each evaluation of a run, in order; smaller is better."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    before: float | None
    """Before the first step; not among the others, as no checkpoint has it."""

    @classmethod
    def of(cls, log: Sequence[Mapping[str, Any]], metric: str) -> Self:
        """Those of a state's `log_history`."""
        evaluated = [(int(line["step"]), float(line[f"eval_{metric}"])) for line in log if f"eval_{metric}" in line]
        trained = [(step, value) for step, value in evaluated if step > 0]
        return cls(
            steps=tuple(step for step, _ in trained),
            values=tuple(value for _, value in trained),
            before=next((value for step, value in evaluated if step == 0), None),
        )

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest, the first of equal ones; None where there is none."""
        finite = [pair for pair in zip(self.steps, self.values, strict=True) if math.isfinite(pair[1])]
        return min(finite, key=lambda pair: (pair[1], pair[0]), default=None)

    def without_improvement(self, least: float) -> int:
        """How many evaluations ago the last improvement was: a value that lies more than `least` below the one before.

        Small steps down that come to more than `least` together are an improvement.
        """
        lowest, since = math.inf, 0
        for value in self.values:
            if value < lowest - least:
                lowest, since = value, 0
            else:
                since += 1
        return since

    def are_exhausted(self, patience: int | None, least: float) -> bool:
        """Whether training ends here: `patience` evaluations in a row have not improved."""
        return patience is not None and self.without_improvement(least) >= patience

    def as_dict(self, metric: str) -> dict[str, Any]:
        """JSON form, for the run document."""
        best = self.best
        return {
            "metric": metric,
            "evaluations": len(self.steps),
            "before": self.before,
            "best": None if best is None else {"step": best[0], "value": best[1]},
            "last": {"step": self.steps[-1], "value": self.values[-1]} if self.steps else None,
        }


class KeepBest(TrainerCallback):
    """Saves a checkpoint whenever an evaluation is the best so far, and ends training where patience is at its end."""

    def __init__(self, metric: str, *, patience: int | None, min_improvement: float) -> None:
        self._metric, self._patience, self._least = metric, patience, min_improvement

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint, and for the end with one; the same on all processes, as their figures are."""
        evaluations = Evaluations.of(state.log_history, self._metric)
        if evaluations.best is not None and evaluations.best[0] == state.global_step:
            control.should_save = True
        if evaluations.are_exhausted(self._patience, self._least):
            control.should_save = control.should_training_stop = True
