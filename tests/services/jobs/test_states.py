"""The state machine: no way out of an end, an end from everywhere."""

import pytest

from logitcask_schemas.api.objects import FINAL, STATUSES
from logitcask_services.jobs.extraction import STEPS, IllegalTransitionError, check_step


def test_ends_are_final_and_everything_else_reaches_one():
    for status in STATUSES:
        assert (not STEPS[status]) == (status in FINAL - {"failed"}), "a failed extraction may be taken up again"
        reached = {status}
        while more := {following for status in reached for following in STEPS[status]} - reached:
            reached |= more
        assert reached & FINAL


def test_refusal_names_both():
    with pytest.raises(IllegalTransitionError, match="x is completed and cannot become cancelling"):
        check_step("x", "completed", "cancelling")
