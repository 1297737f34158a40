"""The order of a run in phases: shares, and that where a phase is resumed does not matter."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_consumer.data import EMPTY, Phase, PhaseSampler, StepSampler

SOURCES = [[np.array([5, 7])], [np.array([9])]]


def sampler(phase, parts=SOURCES, *, sequences=4, micro=2, accumulation=2, steps=20):
    return PhaseSampler(
        parts, phase, seed=3, sequences=sequences, micro=micro, accumulation=accumulation, steps_in_all=steps
    )


def steps_of(own, *, accumulation=2):
    batches = list(own)
    return [
        [sequence for batch in batches[at : at + accumulation] for sequence in batch if sequence != EMPTY]
        for at in range(0, len(batches), accumulation)
    ]


def test_steps_before_the_phase_are_empty_and_its_own_hold_the_shares():
    steps = steps_of(sampler(Phase(first=5, stop=9, shares=(0.75, 0.25), skipped=(0, 0))))
    assert steps[:5] == [[]] * 5
    for step in steps[5:9]:
        assert sum(sequence < 12 for sequence in step) == 3
        assert sum(sequence >= 12 for sequence in step) == 1


@given(share=st.floats(0, 1), sequences=st.integers(1, 40), steps=st.integers(1, 50))
def test_a_share_is_right_to_one_sequence_after_every_step(share, sequences, steps):
    phase = Phase(first=7, stop=7 + steps, shares=(share, 1 - share), skipped=(0, 0))
    before = [0, 0]
    for step in range(7, 8 + steps):
        drawn = phase.drawn(step, sequences)
        assert sum(drawn) == (step - 7) * sequences
        assert abs(drawn[0] - share * (step - 7) * sequences) <= 0.5 + 1e-9  # a half goes either way
        assert all(now >= then for now, then in zip(drawn, before, strict=True))
        before = drawn


def test_each_sequence_once_per_pass():
    steps = steps_of(sampler(Phase(first=0, stop=20, shares=(0.5, 0.5), skipped=(0, 0))))
    first = [sequence for step in steps for sequence in step if sequence < 12]
    second = [sequence for step in steps for sequence in step if sequence >= 12]
    assert sorted(first[:12]) == sorted(first[12:24]) == list(range(12))
    assert sorted(second[:9]) == list(range(12, 21))
    assert first[:12] != first[12:24]


def test_a_part_goes_on_where_the_phase_before_left_it():
    shares = (0.5, 0.5)
    whole = steps_of(sampler(Phase(first=0, stop=20, shares=shares, skipped=(0, 0))))
    drawn = Phase(first=0, stop=7, shares=shares, skipped=(0, 0)).drawn(7, 4)
    later = steps_of(sampler(Phase(first=7, stop=20, shares=shares, skipped=(0, drawn[1]))))
    fixed = [[sequence for sequence in step if sequence >= 12] for step in whole]
    assert [[sequence for sequence in step if sequence >= 12] for step in later[7:]] == fixed[7:]
    negative = steps_of(sampler(Phase(first=7, stop=20, shares=shares, skipped=(0, 0))))
    assert [[sequence for sequence in step if sequence >= 12] for step in negative[7:]] != fixed[7:]


def test_a_single_part_has_the_order_of_a_plain_run():
    """12 sequences are three steps of four, so that no epoch ends with a shorter step."""
    plain_batches, done = [], [0]
    plain = StepSampler(
        SOURCES[0], seed=3, sequences=4, micro=2, accumulation=2, processes=1, process=0,
        steps_done=lambda: done[0], steps_in_all=lambda: 20,
    )  # fmt: skip
    for epoch in range(4):
        done[0] = epoch * plain.steps
        plain_batches += list(plain)
    assert list(islice(sampler(Phase(first=0, stop=20), SOURCES[:1]), len(plain_batches))) == plain_batches


def test_a_step_that_does_not_fill_its_micro_batches_ends_with_empty_sequences():
    own = sampler(Phase(first=0, stop=20), SOURCES[:1], sequences=3)
    assert len(own) == 40
    assert [sum(sequence == EMPTY for sequence in batch) for batch in list(own)[:4]] == [0, 1, 0, 1]


def test_parts_without_a_share_each_are_refused():
    with pytest.raises(ValueError, match="2 parts need as many shares"):
        sampler(Phase(first=0, stop=1))
