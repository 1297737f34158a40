"""Means and shares with standard errors and confidence intervals: over positions by document, and over questions.

Shape legend: P positions, D documents, B bootstrap resamples, N questions.

Positions of one document resemble each other, so the document is the unit that is resampled (cluster bootstrap,
Davison and Hinkley 1997, section 3.8). Every metric and model uses the same resamples, which makes intervals of
differences paired. The standard error is the spread of the resampled means; it holds the noise of the tail draws too,
as the draws of different documents are independent.

From the share of drafts that is kept follows what a student is worth as a draft model. With g drafted tokens, each kept
with probability a whatever became of those before, a step of speculative decoding gives 1 + a + ... + a^g tokens on
average: the kept ones and one of the teacher's own (Leviathan et al., arXiv 2211.17192, equation 1). It grows with a,
so ends of intervals and brackets go through it; where drafts fail in clusters, a step gives more than it says.

Questions are few, and shares of right answers may be near 0 or 1: a bootstrap of ten answers that are all right says
that the share is 1 for certain. The score interval of a proportion (Wilson 1927) does not, nor does the adjusted Wald
interval of a difference of paired proportions (Bonett and Price 2012, J. Educ. Behav. Stat. 37, 479), which adds one
pair to each of the two kinds that differ.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
_BLOCK_NUMBERS: Final = 2**22
"""Numbers of resamples that are worked on at a time."""
QUANTILE: Final = NormalDist().inv_cdf((1 + LEVEL) / 2)
DRAFTS = {"sampled": "acceptance", "greedy": "greedy_acceptance"}
"""How drafts are chosen -> the metric that says which share of them is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its standard error and confidence interval; None where a single document gives none."""

    value: float
    standard_error: float | None
    low: float | None
    high: float | None

    def map(self, function: Any) -> Self:
        """Apply an increasing function to value and bounds; the standard error by the function's slope over it."""
        error = self.standard_error
        with np.errstate(over="ignore"):  # what is too large for a number is infinite
            if error is not None:
                error = abs(float(function(self.value + error)) - float(function(self.value - error))) / 2.0
            low, high = (None if bound is None else float(function(bound)) for bound in (self.low, self.high))
            return type(self)(value=float(function(self.value)), standard_error=error, low=low, high=high)

    def as_dict(self) -> dict[str, float | None]:
        """JSON form, which has no infinity: None for what is too large for a number, as the perplexity of 710 nats."""
        return {
            name: value if value is not None and math.isfinite(value) else None for name, value in asdict(self).items()
        }


class DocumentBootstrap:
    """Resamples of D documents, drawn once."""

    def __init__(self, documents_P: NDArray[np.integer[Any]], *, seed: int = 0, resamples: int = RESAMPLES) -> None:
        """Draw the resamples.

        Args:
            documents_P: the document of each position.
            seed: of the resampling.
            resamples: B.
        """
        _, self._document_P = np.unique(documents_P, return_inverse=True)
        self.num_documents = int(self._document_P.max()) + 1
        self._positions_D = np.bincount(self._document_P).astype(np.float64)
        generator = np.random.default_rng(seed)
        even = np.full(self.num_documents, 1.0 / self.num_documents)
        # A document comes up a few times in a resample: a byte holds it, where 2,000 resamples of 100,000 documents in
        # float64 would take 1.6 GB.
        self._times_BD = np.empty((resamples, self.num_documents), dtype=np.uint8)
        for block in self._blocks():
            size = len(self._times_BD[block])
            self._times_BD[block] = generator.multinomial(self.num_documents, even, size=size)

    def _blocks(self) -> list[slice]:
        """The resamples, so many at a time that work on them takes little memory."""
        rows = max(1, _BLOCK_NUMBERS // self.num_documents)
        return [slice(begun, begun + rows) for begun in range(0, len(self._times_BD), rows)]

    def mean(self, values_P: NDArray[np.float32]) -> Estimate:
        """Mean over positions."""
        return self._estimate(float(values_P.mean(dtype=np.float64)), self._resampled(values_P))

    def difference(self, after_P: NDArray[np.float32], before_P: NDArray[np.float32]) -> Estimate:
        """Mean of after - before, paired by position."""
        return self.mean(after_P - before_P)

    def ratio(self, above_P: NDArray[np.float64], below_P: NDArray[np.float64]) -> Estimate:
        """Ratio of two sums over positions, as bits per byte."""
        return self._estimate(*self._ratio(above_P, below_P))

    def ratio_change(
        self,
        above_P: NDArray[np.float64],
        below_P: NDArray[np.float64],
        before: "DocumentBootstrap",
        above_before_Q: NDArray[np.float64],
        below_before_Q: NDArray[np.float64],
    ) -> Estimate:
        """A ratio less the same of other positions (Q) of the same documents, paired by document.

        Raises:
            ValueError: the documents or their resamples differ.
        """
        if not np.array_equal(self._times_BD, before._times_BD):
            raise ValueError("a paired change needs the same documents and the same resamples on both sides")
        (after, after_B), (first, first_B) = (
            self._ratio(above_P, below_P),
            before._ratio(above_before_Q, below_before_Q),
        )
        return self._estimate(after - first, after_B - first_B)

    def _ratio(self, above_P: NDArray[np.float64], below_P: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        above_D, below_D = (
            np.bincount(self._document_P, weights=values, minlength=self.num_documents) for values in (above_P, below_P)
        )
        resampled_B = self._sums(above_D) / self._sums(below_D)
        return float(above_D.sum() / below_D.sum()), resampled_B

    def calibration_error(
        self, confidence_P: NDArray[np.float32], correct_P: NDArray[np.float32], *, bins: int = 15
    ) -> Estimate:
        """Expected calibration error of the most likely token, `bins` bins of equal width (Guo et al., 1706.04599).

        The interval is of the resampled statistic; with few positions it lies high, as the error itself does.
        """
        bin_P = np.minimum((confidence_P * bins).astype(np.int64), bins - 1)
        gaps_DM = np.zeros((self.num_documents, bins))
        np.add.at(gaps_DM, (self._document_P, bin_P), correct_P.astype(np.float64) - confidence_P)
        value = float(np.abs(gaps_DM.sum(0)).sum() / self._positions_D.sum())
        resampled_B = np.abs(self._sums(gaps_DM)).sum(1) / self._sums(self._positions_D)
        return self._estimate(value, resampled_B)

    def _resampled(self, values_P: NDArray[np.float32]) -> NDArray[np.float64]:
        sums_D = np.bincount(self._document_P, weights=values_P, minlength=self.num_documents)
        return self._sums(sums_D) / self._sums(self._positions_D)

    def _sums(self, values_D: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over the documents of each resample, [B, ...], of values [D, ...]."""
        return np.concatenate([self._times_BD[block].astype(np.float64) @ values_D for block in self._blocks()])

    def _estimate(self, value: float, resampled_B: NDArray[np.float64]) -> Estimate:
        if self.num_documents < 2:
            return Estimate(value=value, standard_error=None, low=None, high=None)
        low, high = np.quantile(resampled_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        error = float(resampled_B.std(ddof=1))
        return Estimate(value=value, standard_error=error, low=float(low), high=float(high))


CERTAIN: Final = Estimate(value=0.0, standard_error=0.0, low=0.0, high=0.0)
"""The difference between answers to questions that nothing has changed."""


def share_right(right_N: NDArray[np.bool_]) -> Estimate:
    """The share of answers that are right.

    Args:
        right_N: whether each is.
    """
    count, share = len(right_N), float(right_N.mean())
    added = QUANTILE**2 / count
    middle = (share + added / 2) / (1 + added)
    half = QUANTILE * math.sqrt(share * (1 - share) / count + added / (4 * count)) / (1 + added)
    error = math.sqrt(share * (1 - share) / count)
    return Estimate(value=share, standard_error=error, low=max(0.0, middle - half), high=min(1.0, middle + half))


def difference_right(after_N: NDArray[np.bool_], before_N: NDArray[np.bool_]) -> Estimate:
    """The share of right answers less that of others to the same questions, paired by question.

    Args:
        after_N: whether each is right.
        before_N: the same of the answers to compare with.
    """
    count = len(after_N)
    gained, lost = int((after_N & ~before_N).sum()), int((before_N & ~after_N).sum())
    value = (gained - lost) / count
    more, less = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = QUANTILE * math.sqrt((more + less - (more - less) ** 2) / (count + 2))
    error = math.sqrt(((gained + lost) / count - value**2) / count)
    low, high = max(-1.0, more - less - half), min(1.0, more - less + half)
    return Estimate(value=value, standard_error=error, low=low, high=high)


def tokens_per_step(acceptance: float, drafted: int) -> float:
    """Expected tokens of a step with so many drafted tokens, 1 to `drafted` + 1."""
    return sum(acceptance**kept for kept in range(drafted + 1))


def speculative(
    estimates: dict[str, Estimate], brackets: dict[str, dict[str, float]], lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """Expected tokens of a step for each draft length, of drafts that the student samples and of greedy ones.

    Args:
        estimates: of the metrics that have one which is no bound.
        brackets: metric -> `low` and `high`, of those that are known between two ends.
        lengths: tokens that are drafted for a step.

    Returns:
        One object for each length: `drafted`, and for `sampled` and `greedy` an estimate, or `low` and `high` alone.
    """
    return [
        {
            "drafted": length,
            **{way: _step(estimates.get(name), brackets.get(name), length) for way, name in DRAFTS.items()},
        }
        for length in lengths
    ]


def _step(estimate: Estimate | None, bracket: dict[str, float] | None, length: int) -> dict[str, float | None]:
    if estimate is not None:
        return estimate.map(lambda acceptance: tokens_per_step(acceptance, length)).as_dict()
    assert bracket is not None, "an acceptance without an estimate has a bracket"
    return {end: tokens_per_step(bracket[end], length) for end in ("low", "high")}
