"""From a sample of a corpus' lines to all of them, and from positions to documents: estimates with 95 % intervals.

Shape legend: N lines of the sample, P positions, D documents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST: Final = 4
"""Lines, or stretches of time, without which no interval is told."""
STRETCHES: Final = 8
"""Into which the time of a pilot is cut: documents come back in bunches, which single ones would not show."""
_Z: Final = 1.959963984540054
"""Of the normal distribution, for 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A sum over all lines."""

    expected: float
    error: float
    """Half of its 95 % interval, as a share of it; NaN where it cannot be told."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval's ends, the lower one not below 0; None where it cannot be told."""
        if math.isnan(self.error):
            return None
        return self.expected * max(1 - self.error, 0.0), self.expected * (1 + self.error)


def ratio_estimate(sizes_N: ArrayLike, values_N: ArrayLike, *, size: float, lines: int) -> Estimate:
    """Sum of a value over a corpus, from its lines' sizes: what a line gives grows with its bytes.

    Args:
        sizes_N: bytes of the sample's lines, [N], N >= 1.
        values_N: what each gives, [N]; 0 of a line that gives nothing.
        size: bytes of all lines.
        lines: how many there are; of a sample that is all of them nothing is uncertain.
    """
    x_N, y_N = np.asarray(sizes_N, dtype=np.float64), np.asarray(values_N, dtype=np.float64)
    ratio = float(y_N.sum() / x_N.sum())
    left = max(1 - len(x_N) / lines, 0.0)
    return Estimate(expected=ratio * size, error=_relative_error(x_N, y_N) * math.sqrt(left) if left else 0.0)


def pace_error(ends_D: Sequence[float], tokens_D: Sequence[int], start: float) -> float:
    """Half of the 95 % interval of a pace, as a share of it; NaN where there are too few documents.

    Args:
        ends_D: when each document came back, in seconds, ascending.
        tokens_D: what the teacher read for each.
        start: when the first one was begun.
    """
    if len(ends_D) < 2 * FEWEST:
        return math.nan
    parts = min(STRETCHES, len(ends_D) // 2)
    last = [group[-1] for group in np.array_split(np.arange(len(ends_D)), parts)]
    seconds = np.diff(np.asarray(ends_D)[last], prepend=start)
    tokens = np.diff(np.cumsum(tokens_D)[last], prepend=0)
    return _relative_error(tokens.astype(np.float64), seconds)


def product_error(*errors: float) -> float:
    """Of a product of independent estimates."""
    return math.hypot(*errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentMean:
    """A mean with its interval; None where there are fewer than `FEWEST` documents."""

    value: float
    low: float | None
    high: float | None

    def root(self) -> "DocumentMean":
        """Of the square root: a standard deviation from a mean of variances."""
        low, high = (None if end is None else math.sqrt(max(end, 0.0)) for end in (self.low, self.high))
        return DocumentMean(value=math.sqrt(self.value), low=low, high=high)


def document_mean(values_P: NDArray[np.float64], documents_P: NDArray[np.int64]) -> DocumentMean:
    """Mean over positions, its interval by the ratio estimate of sums over documents, with Student's t.

    Args:
        values_P: at least one.
        documents_P: number of the document of each.
    """
    value = float(values_P.mean())
    _, document_P = np.unique(documents_P, return_inverse=True)
    residuals_D = np.bincount(document_P, values_P - value)
    count = len(residuals_D)
    if count < FEWEST:
        return DocumentMean(value=value, low=None, high=None)
    half = _student(count - 1) * math.sqrt(count * float(np.var(residuals_D, ddof=1))) / len(values_P)
    return DocumentMean(value=value, low=value - half, high=value + half)


def _relative_error(x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of sum y / sum x, as a share of it; NaN where it cannot be told."""
    count, total = len(x_N), float(y_N.sum())
    if not y_N.any():
        return 0.0
    if count < FEWEST:
        return math.nan
    residuals_N = y_N - total / x_N.sum() * x_N
    return _student(count - 1) * math.sqrt(count * float(np.var(residuals_N, ddof=1))) / total


def _student(freedom: int) -> float:
    """Student's t for 95 %, by its expansion around the normal one (to 2 % from 3 degrees of freedom on)."""
    z = _Z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / float(freedom) ** power for power, term in enumerate(terms))
