"""What a tau costs and buys, from the pilot's records: entries, bytes per token, noise of the training target.

The noise is the sum over the vocabulary of Var(t-hat), exactly. Softmax gradients are p - t-hat, so it is also the
noise of a position's gradient with respect to its logits. With n draws from a tail of mass r, a_j = n t_j / r expected
hits of token j, and f_j the fraction of a_j:

    systematic    (r / n)² sum_tail f_j (1 - f_j)      = r² / n - sum_tail t_j² where every a_j <= 1
    multinomial   (r² - sum_tail t_j²) / n

Shape legend: P positions, E head entries of the pilot, N draws made again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_services.capture.module import NEGLIGIBLE_MASS
from logitcask_services.capture.pilot.record import PilotRecords


@dataclass(frozen=True, slots=True, kw_only=True)
class TauFigures:
    """Expected costs and noise of one tau."""

    tau: float
    head_entries: float
    """Per position."""
    draws: float
    """Per position."""
    arrow_bytes: float
    """Per token, in shards as they are trained from; without framing, a few kilobytes per shard."""
    arrow_error: float
    """Standard error of `arrow_bytes`, from the spread between the sample's documents."""
    zarr_bytes: float
    """Per token, each column compressed as the Zarr carrier does; estimated on the sample."""
    noise: float
    """Sum over the vocabulary of the variance of the target, mean over positions."""
    relative_noise: float
    """Root of noise over the mean squared norm of the gradient p - t: one position's noise in units of its signal."""

    @property
    def inverse(self) -> int:
        """1 / tau, rounded."""
        return round(1 / self.tau)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The pilot's records cut at a larger tau."""

    kept_E: NDArray[np.bool_]
    """Entries that stay in the head."""
    tail_mass_P: NDArray[np.float64]
    counts_P: NDArray[np.int64]
    """Draws per position."""


def cut_at(pilot: PilotRecords, spec: CaptureSpec, tau: float) -> Cut:
    """What capture would put into the head and draw at `tau`, by the rules of `RecordCapture`."""
    probable_E = (pilot.head_logprobs_E >= np.log(tau)) & (pilot.head_ranks_E < spec.head_max)
    kept_E = pilot.required_E | probable_E | (pilot.head_ranks_E == 0)
    given_up_P = np.bincount(
        pilot.head_rows_E[~kept_E], np.exp(pilot.head_logprobs_E[~kept_E]), minlength=pilot.positions
    )
    tail_mass_P = pilot.tail_mass_P + given_up_P
    counts_P = np.minimum(np.ceil(tail_mass_P / tau), spec.tail_max).astype(np.int64)
    counts_P[tail_mass_P < NEGLIGIBLE_MASS] = 0
    return Cut(kept_E=kept_E, tail_mass_P=tail_mass_P, counts_P=counts_P)


def noise(pilot: PilotRecords, spec: CaptureSpec, cut: Cut) -> NDArray[np.float64]:
    """Sum over the vocabulary of Var(t-hat), per position; 0 where nothing is drawn."""
    variance_P: NDArray[np.float64]
    left_E = ~cut.kept_E
    rows_E, t_E = pilot.head_rows_E[left_E], np.exp(pilot.head_logprobs_E[left_E])
    n_P, r_P = np.maximum(cut.counts_P, 1), cut.tail_mass_P
    if spec.sampler == "multinomial":
        squares_P = pilot.tail_squares_P + np.bincount(rows_E, t_E**2, pilot.positions)
        variance_P = (r_P**2 - squares_P) / n_P
    else:
        share_P = r_P / n_P
        fraction_E = np.modf(t_E / share_P[rows_E])[0]
        known_P = share_P**2 * np.bincount(rows_E, fraction_E * (1 - fraction_E), pilot.positions)
        # No token below the pilot's threshold outweighs a draw: that stands for half of tau at least, or for all of r.
        variance_P = known_P + pilot.tail_mass_P * share_P - pilot.tail_squares_P
    variance_P[cut.counts_P == 0] = 0.0
    np.maximum(variance_P, 0.0, out=variance_P)
    return variance_P
