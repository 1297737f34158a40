"""Shares of right answers and their differences, with intervals that hold for few questions and near 0 and 1.

A bootstrap of ten answers that are all right says that the share is 1 for certain. The score interval of a proportion
(Wilson 1927) does not, nor does the adjusted Wald interval of a difference of paired proportions (Bonett and Price
2012, J. Educ. Behav. Stat. 37, 479), which adds one pair to each of the two kinds that differ. Shape legend: N
questions.
"""

import math
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.report.estimates import LEVEL, Estimate

QUANTILE: Final = NormalDist().inv_cdf((1 + LEVEL) / 2)


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


CERTAIN: Final = Estimate(value=0.0, standard_error=0.0, low=0.0, high=0.0)
"""The difference between answers to questions that nothing has changed."""
