"""Tokens of a step of speculative decoding, against counting them; and what estimates become in JSON."""

import json

import numpy as np
import pytest

from logitcask_consumer.report.estimates import Estimate, speculative, tokens_per_step
from logitcask_consumer.report.tables import cell, short_cell


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.85])
@pytest.mark.parametrize("drafted", [1, 4, 9])
def test_the_formula_is_that_of_the_paper(acceptance, drafted):
    assert tokens_per_step(acceptance, drafted) == pytest.approx((1 - acceptance ** (drafted + 1)) / (1 - acceptance))


def test_a_perfect_draft_gives_one_token_more_than_was_drafted():
    assert tokens_per_step(1.0, 4) == 5.0


def test_it_is_what_steps_give():
    kept = np.random.default_rng(0).random((200_000, 4)) < 0.7
    tokens = 1 + np.cumprod(kept, axis=1).sum(1)
    assert tokens_per_step(0.7, 4) == pytest.approx(tokens.mean(), abs=5 * tokens.std() / np.sqrt(len(tokens)))


def test_estimates_keep_their_intervals_and_brackets_their_ends():
    estimate = Estimate(value=0.5, standard_error=0.01, low=0.4, high=0.6)
    (step,) = speculative({"greedy_acceptance": estimate}, {"acceptance": {"low": 0.2, "high": 0.9}}, [2])
    assert step["drafted"] == 2
    assert step["greedy"] == pytest.approx(
        {"value": 1.75, "standard_error": 0.02, "low": 1 + 0.4 + 0.16, "high": 1 + 0.6 + 0.36}
    )
    assert step["sampled"] == pytest.approx({"low": 1.24, "high": 1 + 0.9 + 0.81})


def test_a_perplexity_that_is_no_number_is_left_out_of_the_json():
    nll = Estimate(value=712.0, standard_error=5.0, low=700.0, high=720.0)
    perplexity = nll.map(np.exp).as_dict()  # warnings are errors
    assert perplexity == {"value": None, "standard_error": None, "low": pytest.approx(np.exp(700.0)), "high": None}
    assert "Infinity" not in json.dumps(perplexity)
    assert cell(perplexity, "{:.2f}") == short_cell(perplexity, "{:.2f}") == ""
