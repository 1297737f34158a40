"""Ratio estimates from a sample: right values, intervals that hold as often as they say, certainty of a whole."""

import math

import numpy as np
import pytest

from logitcask_services.pilot.extrapolation import Estimate, _student, pace_error, ratio_estimate


def test_a_value_that_goes_with_size_is_known_for_sure():
    estimate = ratio_estimate([10, 20, 30, 40], [5, 10, 15, 20], size=1000, lines=50)
    assert (estimate.expected, estimate.interval) == (500, (500, 500))


def test_all_lines_leave_nothing_open_and_few_lines_tell_no_interval():
    whole = ratio_estimate([10, 20, 30, 40], [9, 1, 30, 4], size=100, lines=4)
    assert (whole.expected, whole.interval) == (44, (44, 44))
    few = ratio_estimate([10, 20, 30], [9, 1, 30], size=100, lines=4)
    assert few.interval is None
    assert Estimate(expected=8.0, error=2.0).interval == (0.0, 24.0)
    nothing = ratio_estimate([10, 20], [0, 0], size=100, lines=9)
    assert (nothing.expected, nothing.interval) == (0, (0, 0))


def test_95_of_100_intervals_hold_the_truth():
    random = np.random.default_rng(0)
    sizes = random.lognormal(5, 1, 20_000)
    values = sizes * random.gamma(4, 0.5, len(sizes)) + 100
    truth, held = values.sum(), 0
    for start in range(400):
        drawn = random.choice(len(sizes), 200, replace=False)
        estimate = ratio_estimate(sizes[drawn], values[drawn], size=sizes.sum(), lines=len(sizes))
        assert estimate.interval is not None, start
        held += estimate.interval[0] <= truth <= estimate.interval[1]
    assert 0.91 <= held / 400 <= 0.98


@pytest.mark.parametrize(("freedom", "expected"), [(3, 3.182), (7, 2.365), (30, 2.042), (1000, 1.962)])
def test_students_t(freedom, expected):
    assert _student(freedom) == pytest.approx(expected, rel=0.02)


def test_a_steady_pace_is_known_and_an_unsteady_one_is_not():
    assert pace_error([1.0 + number for number in range(16)], [100] * 16, 0.0) == pytest.approx(0.0, abs=1e-9)
    ends = np.cumsum([1.0, 3.0] * 8)
    assert pace_error(np.cumsum([1] * 8 + [3] * 8).tolist(), [100] * 16, 0.0) > 0.3
    # Documents that come in bunches of a whole stretch are no unsteadiness.
    assert pace_error([float(2 * (1 + number // 2)) for number in range(16)], [100] * 16, 0.0) == pytest.approx(0.0)
    assert pace_error(ends.tolist(), [100] * 16, 0.0) == pytest.approx(0.0, abs=1e-9)
    assert math.isnan(pace_error([1.0] * 7, [100] * 7, 0.0))
