"""Intervals of right answers: their coverage over all outcomes, not a sample of them."""

import math

import numpy as np
import pytest

from logitcask_consumer.report.estimates import difference_right, share_right


def right(count, of):
    return np.arange(of) < count


def ends(estimate):
    """Of its interval, which is there."""
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def pair(gained, lost, both, of):
    """Answers before and after with so many that only one side, or both, have right."""
    before_N, after_N = np.zeros(of, dtype=bool), np.zeros(of, dtype=bool)
    before_N[:lost] = after_N[lost : lost + gained] = True
    before_N[lost + gained : lost + gained + both] = after_N[lost + gained : lost + gained + both] = True
    return after_N, before_N


def test_shares_by_hand():
    estimate = share_right(right(8, 10))
    assert estimate.value == 0.8
    # Wilson's interval of 8 of 10, as textbooks give it.
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert estimate.standard_error == pytest.approx(math.sqrt(0.8 * 0.2 / 10))
    assert share_right(right(0, 10)).high == pytest.approx(0.2775, abs=1e-4)
    assert share_right(right(10, 10)).low == pytest.approx(0.7225, abs=1e-4)


def test_differences_by_hand():
    estimate = difference_right(*pair(2, 7, 30, 50))
    assert estimate.value == pytest.approx(-0.1)
    more, less = 3 / 52, 8 / 52
    half = 1.959964 * math.sqrt((more + less - (more - less) ** 2) / 52)
    assert (estimate.low, estimate.high) == pytest.approx((more - less - half, more - less + half), abs=1e-6)
    same = difference_right(*pair(0, 0, 20, 50))
    assert same.value == 0
    low, high = ends(same)
    assert -0.06 < low < 0 < high < 0.06
    assert difference_right(*pair(10, 0, 0, 10)).high == 1.0


def test_a_value_lies_in_its_interval():
    for gained in range(31):
        for lost in range(31 - gained):
            estimate = difference_right(*pair(gained, lost, 0, 30))
            low, high = ends(estimate)
            assert low <= estimate.value <= high


@pytest.mark.parametrize("of", [10, 50, 200])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.8, 0.97])
def test_the_interval_of_a_share_covers_it(share, of):
    covered = 0.0
    for count in range(of + 1):
        low, high = ends(share_right(right(count, of)))
        if low <= share <= high:
            covered += math.comb(of, count) * share**count * (1 - share) ** (of - count)
    assert covered > 0.9


@pytest.mark.parametrize("of", [10, 50])
@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.0), (0.02, 0.02), (0.0, 0.1), (0.05, 0.2), (0.1, 0.4), (0.3, 0.3)])
def test_the_interval_of_a_paired_difference_covers_it(gain, loss, of):
    covered = 0.0
    for gained in range(of + 1):
        for lost in range(of + 1 - gained):
            rest = of - gained - lost
            ways = math.comb(of, gained) * math.comb(of - gained, lost)
            likely = ways * gain**gained * loss**lost * (1 - gain - loss) ** rest
            if likely > 1e-12:
                low, high = ends(difference_right(*pair(gained, lost, rest, of)))
                covered += likely * (low <= gain - loss <= high)
    assert covered > 0.93


def test_a_bootstrap_would_not_cover():
    """Why these intervals: resampled answers that are all right give no interval."""
    all_right = right(10, 10).astype(np.float64)
    resampled = np.random.default_rng(0).choice(all_right, (1000, 10)).mean(1)
    assert np.ptp(resampled) == 0
    assert ends(share_right(right(10, 10)))[0] < 0.75
