"""Teachers that fail rest, ever longer, and let others go first; what is waited for is not counted."""

import pytest

from logitcask_services.jobs.setbacks import LONGEST_PAUSE, Setbacks


@pytest.fixture
def setbacks():
    return Setbacks(restarts=3, backoff_seconds=10.0)


def test_pauses_double_and_the_last_failure_is_one_too_many(setbacks):
    for number, seconds in ((1, 10), (2, 20), (3, 40)):
        assert setbacks.fail("small", "it died") == f"it died. Restart {number} of 3 follows"
        rest = setbacks.rest_of("small")
        assert rest.seconds == pytest.approx(seconds, abs=5)
        assert rest.yields == (number >= 2), "one death alone changes no order"
    assert setbacks.rest_of("large") is None
    assert setbacks.seconds_to_retry("small", 5.0) == setbacks.seconds_to_retry("large", 5.0) == 5.0
    assert setbacks.fail("small", "it died") is None


def test_progress_makes_failures_forgotten_and_a_load_ends_a_rest(setbacks):
    setbacks.fail("small", "it died")
    setbacks.loaded("small")
    assert setbacks.rest_of("small") is None
    assert setbacks.is_troubled("small"), "a load is no progress"
    setbacks.progressed("small")
    assert not setbacks.is_troubled("small")
    assert setbacks.fail("small", "it died") == "it died. Restart 1 of 3 follows"


def test_what_is_waited_for_may_take_for_ever(setbacks):
    for _ in range(3000):
        setbacks.wait("small", "its folder is gone")
    rest = setbacks.rest_of("small")
    assert (rest.reason, rest.yields) == ("its folder is gone", True)
    assert rest.seconds == pytest.approx(LONGEST_PAUSE, abs=5)
    assert setbacks.failures("small") == 0
    setbacks.loaded("small")
    assert not setbacks.is_troubled("small")


def test_one_that_is_given_up_does_not_rest(setbacks):
    setbacks.fail("small", "it died")
    setbacks.give_up("small", "it died too often")
    assert setbacks.given_up == {"small": "it died too often"}
    assert setbacks.rest_of("small") is None
