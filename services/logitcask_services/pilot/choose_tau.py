"""`choose_tau`: the threshold that a budget of bytes per token buys, and the noise it leaves.

One pilot pass gives the records from which those at every tau in question follow (`record`), so costs and noise of a
tau are a few array operations, and the largest 1 / tau within the budget is found by bisection over whole numbers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.pilot.costs import TauFigures, arrow_bytes, arrow_error, cut_at, draw_mass, noise, zarr_bytes
from logitcask_services.pilot.pilot import PilotError, PilotRecords, pilot_spec, piloted

if TYPE_CHECKING:
    from logitcask_services.engines.engine import Engine
    from logitcask_services.pilot.logits import LogitsFunction

Carrier = Literal["arrow", "zarr"]
GRID: Final = (5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 400)
"""1 / tau of the table."""
_COARSEST, _FINEST = 2, GRID[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class TauChoice:
    """The chosen tau, what it promises, and the table it was chosen from."""

    spec: CaptureSpec
    """The given spec in mode `threshold` with the chosen tau."""
    chosen: TauFigures
    table: tuple[TauFigures, ...]
    """By descending tau, the chosen one among them."""
    budget: float
    """Bytes per token."""
    carrier: Carrier
    """Whose bytes the budget counts."""
    documents: int
    positions: int
    label_noise: float
    """The same noise of one-hot labels drawn from the teacher, 1 - sum t²: what plain cross-entropy trains with."""
    gradient_square: float
    """Mean squared norm of the gradient p - t that noise is related to."""
    gradient_of: Literal["student", "uniform"]
    """Whose p: a student's, or the uniform distribution of one that knows nothing."""

    @property
    def bytes_per_token(self) -> float:
        """What the chosen tau is expected to take in the budget's carrier."""
        return self.chosen.arrow_bytes if self.carrier == "arrow" else self.chosen.zarr_bytes


def choose_tau(
    teacher: "Engine | LogitsFunction",
    sample: Iterable[ArrayLike],
    bytes_per_token: float,
    *,
    spec: CaptureSpec | None = None,
    carrier: Carrier = "arrow",
    positions: int = 4096,
    student: "LogitsFunction | None" = None,
) -> TauChoice:
    """Choose tau for a budget of bytes per token, from a pilot pass over a sample.

    Args:
        teacher: an engine, or a function from token ids [L] to logits [L - 1, V].
        sample: documents as token ids, at least 2 each and no longer than the teacher takes. Those of the corpus to
            be captured, or like them: costs depend on the text.
        bytes_per_token: the budget, of everything a cask stores but the framing of its shards.
        spec: everything but mode and tau: codec, sampler, limits, optional columns. None: the default spec.
        carrier: whose bytes the budget counts. Those of `zarr` are after zstd.
        positions: the sample is read until it has so many.
        student: function as for `teacher`; the noise is then related to this student's gradient. None: to that of a
            student with uniform p, the gradient at the start of training.

    Returns:
        The largest 1 / tau, a whole number from 2 to 400, that the budget allows.

    Raises:
        PilotError: the sample is empty or a document of it unusable, the budget is below what tau = 1/2 takes, or the
            student is the teacher.
    """
    asked = spec or CaptureSpec()
    threshold_spec = asked.at_tau(asked.tau)
    documents, vocab_size = piloted(teacher, sample, pilot_spec(threshold_spec), positions)
    pilot = PilotRecords.of(documents, threshold_spec)
    layout = RecordLayout.for_capture(threshold_spec, vocab_size)
    square = float(np.mean(pilot.squares_P)) - 1 / vocab_size
    if student is not None:
        from logitcask_services.pilot.logits import gradient_squares  # torch, see `piloted`

        square = gradient_squares(student, documents, pilot.squares_P)
    if square <= 0:
        raise PilotError(
            "the gradient to compare the noise with is zero: the student says what the teacher says, or the teacher is "
            "uniform; give another student, or none"
        )

    def cost(inverse: int) -> float:
        cut = cut_at(pilot, threshold_spec, 1 / inverse)
        return arrow_bytes(pilot, cut, layout) if carrier == "arrow" else zarr_bytes(pilot, threshold_spec, cut, layout)

    inverse = _largest(cost, bytes_per_token, carrier)
    table = tuple(_figures(pilot, threshold_spec, layout, candidate, square) for candidate in sorted({*GRID, inverse}))
    return TauChoice(
        spec=threshold_spec.at_tau(1 / inverse),
        chosen=next(figures for figures in table if figures.inverse == inverse),
        table=table,
        budget=bytes_per_token,
        carrier=carrier,
        documents=len(documents),
        positions=pilot.positions,
        label_noise=1 - float(np.mean(pilot.squares_P)),
        gradient_square=square,
        gradient_of="uniform" if student is None else "student",
    )


def _largest(cost: Callable[[int], float], budget: float, carrier: Carrier) -> int:
    """The largest 1 / tau whose cost is within the budget, by bisection."""
    if (least := cost(_COARSEST)) > budget:
        raise PilotError(
            f"a budget of {budget:g} bytes per token is below the {least:.1f} that tau = 1/{_COARSEST} takes "
            f"({carrier}); raise it, choose codec u8, or store fewer columns"
        )
    low, high = _COARSEST, _FINEST + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


def _figures(
    pilot: PilotRecords, spec: CaptureSpec, layout: RecordLayout, inverse: int, gradient_square: float
) -> TauFigures:
    cut = cut_at(pilot, spec, 1 / inverse)
    variance = float(np.mean(noise(pilot, spec, cut)))
    return TauFigures(
        tau=1 / inverse,
        head_entries=float(cut.kept_E.sum()) / pilot.positions,
        draws=float(cut.counts_P.sum()) / pilot.positions,
        draw_mass=draw_mass(cut),
        arrow_bytes=arrow_bytes(pilot, cut, layout),
        arrow_error=arrow_error(pilot, cut, layout),
        zarr_bytes=zarr_bytes(pilot, spec, cut, layout),
        noise=variance,
        relative_noise=float(np.sqrt(variance / gradient_square)),
    )
