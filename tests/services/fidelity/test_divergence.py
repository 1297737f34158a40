"""Divergences of records against plain loops over the vocabulary in float64."""

import math

import numpy as np
import pytest
import torch

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.fidelity.divergence import (
    NamedTokens,
    against_plain,
    between,
    entropy,
    target_excess,
    truncated,
    whole,
)
from tests.support.services.capture_oracle import cut, dense, logits_rows, run

VOCAB = 300


def log_softmax(logits):
    return torch.log_softmax(torch.as_tensor(logits).double(), -1).numpy()


def kl(said, true):
    """By the definition, over parts that add up to one."""
    return sum(b * math.log(b / a) for b, a in zip(said, true, strict=True) if b > 0)


def parts(position, dense_V=None):
    """Head and rest of a record, or what a whole distribution gives them."""
    if dense_V is None:
        return [*np.exp(position.head_logprobs), position.tail_mass]
    return [*dense_V[position.head_ids], np.delete(dense_V, position.head_ids).sum()]


SPEC = CaptureSpec(tau=0.02, logprob_codec="f32")


def test_a_record_against_another_distribution_is_the_kl_of_head_and_rest():
    logits, other = logits_rows(0, 12, VOCAB), logits_rows(1, 12, VOCAB)
    records = run(SPEC, logits)
    found = against_plain(NamedTokens.of(records), log_softmax(other))
    expected = [kl(parts(at), parts(at, t)) for at, t in zip(cut(records), dense(other), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert min(expected) > 0.1
    of_whole = [kl(s, t) for s, t in zip(dense(logits), dense(other), strict=True)]
    assert (np.array(expected) < of_whole).all()  # a lower bound
    np.testing.assert_allclose(whole(log_softmax(logits), log_softmax(other)), of_whole, rtol=1e-10)


def test_a_record_against_its_own_distribution_is_nothing_but_rounding():
    logits = logits_rows(0, 50, VOCAB)
    found = against_plain(NamedTokens.of(run(SPEC, logits)), log_softmax(logits))
    assert (found >= 0).all()
    assert found.max() < 1e-12
    # The usual sum of b log(b/a) would not tell it from its rounding.
    assert abs(whole(log_softmax(logits), log_softmax(logits))).max() == 0


def test_two_records_are_compared_over_what_both_name():
    logits = logits_rows(0, 12, VOCAB)
    other = logits + 0.3 * logits_rows(1, 12, VOCAB)
    first, second = run(SPEC, other), run(SPEC, logits)
    found = between(NamedTokens.of(first), NamedTokens.of(second))
    expected, common, largest = [], 0, 0.0
    for said, true in zip(cut(first), cut(second), strict=True):
        both = [token for token in said.head_ids if token in true.head_ids]
        b, a = (
            np.array([np.exp(at.head_logprobs[at.head_ids.tolist().index(token)]) for token in both])
            for at in (said, true)
        )
        expected.append(kl([*b, 1 - b.sum()], [*a, 1 - a.sum()]))
        common += len(both)
        largest = max(largest, float(np.abs(np.log(b / a)).max()))
    np.testing.assert_allclose(found.kl_R, expected, rtol=1e-4, atol=1e-9)
    assert (found.common, found.named) == (common, len(first.head_ids_H))
    assert common < found.named
    assert found.largest == pytest.approx(largest, rel=1e-4)
    assert not between(NamedTokens.of(first), NamedTokens.of(first)).kl_R.any()


@pytest.mark.parametrize("spec", [SPEC, CaptureSpec(mode="sampled", draws=20, logprob_codec="f32")])
def test_the_target_is_right_on_average_and_the_excess_is_its_cross_entropy(spec):
    logits = logits_rows(0, 8, VOCAB)
    t, log_t = dense(logits), log_softmax(logits)
    total, rounds = np.zeros(8), 150
    for seed in range(rounds):
        records = run(spec.model_copy(update={"seed": seed}), logits)
        excess = target_excess(records, log_t, drawn=True)
        total += excess
        if seed < 3:
            targets = np.stack([at.target(VOCAB) for at in cut(records)])
            np.testing.assert_allclose(excess, ((targets - t) * -log_t).sum(1), atol=1e-5)
    assert np.abs(total / rounds).max() < 0.1
    # Without the draws the same head lies far below: what truncation does.
    headless = run(CaptureSpec(mode="topk", k=5, logprob_codec="f32"), logits)
    assert target_excess(headless, log_t, drawn=False).mean() < -0.5


def test_a_truncated_top_k_loses_the_log_of_its_mass():
    logits = logits_rows(0, 9, VOCAB)
    t, log_t = dense(logits), log_softmax(logits)
    for k in (1, 7, VOCAB):
        lost, shortfall = truncated(log_t, k)
        for row in range(9):
            order = np.argsort(-t[row])[:k]
            target = np.zeros(VOCAB)
            target[order] = t[row, order] / t[row, order].sum()
            assert lost[row] == pytest.approx(kl(target, t[row]), abs=1e-12)
            assert shortfall[row] == pytest.approx(((target - t[row]) * -log_t[row]).sum(), abs=1e-12)
    assert truncated(log_t, VOCAB)[0].max() < 1e-12  # nothing is left out


def test_the_trainer_reads_a_rounded_head_so_that_all_adds_up_to_one():
    records = run(CaptureSpec(tau=0.02, logprob_codec="f16"), logits_rows(0, 30, VOCAB))
    named = NamedTokens.as_trained(records, drawn=True)
    sums = np.bincount(named.rows_H, np.exp(named.logprobs_H)) + np.exp(named.log_rest_R)
    np.testing.assert_allclose(sums, 1, rtol=1e-12)
    stored = NamedTokens.of(records)
    assert np.abs(np.bincount(stored.rows_H, np.exp(stored.logprobs_H)) + np.exp(stored.log_rest_R) - 1).max() > 1e-5


def test_entropy_counts_impossible_tokens_as_nothing():
    log_t = np.log(np.array([[0.5, 0.5, 1e-300]]))
    log_t[0, 2] = -np.inf
    assert entropy(log_t)[0] == pytest.approx(math.log(2))


def test_a_shifted_record_is_nats_away():
    """The negative control of every row that compares with a plain pass."""
    logits = logits_rows(0, 30, VOCAB)
    log_t = log_softmax(logits)
    records = run(CaptureSpec(mode="topk", k=30, logprob_codec="f32"), logits)
    assert against_plain(NamedTokens.of(records), np.roll(log_t, 1, axis=0)).mean() > 1
