"""The target itself, without any loss: its mean is the teacher, its noise is what theory says, its mass is one."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.consumer.reference_sampler import (
    DensePositions,
    every_outcome,
    random_positions,
    sample,
    to_target,
    total_mass,
)

ROWS, VOCAB = 6, 40


def dense_target(target, vocab=VOCAB):
    """Each row's t̂ over the vocabulary, [R, V]."""
    out = np.zeros((target.num_rows, vocab))
    np.add.at(out, (target.head_rows_H.numpy(), target.head_ids_H.numpy()), target.head_weights_H.numpy())
    np.add.at(out, (target.tail_rows_N.numpy(), target.tail_ids_N.numpy()), target.tail_weights_N.numpy())
    return out


def outcomes(positions, **capture):
    """Every t̂ that the sampler's uniform can give, with the row and the probability of each."""
    rows, u, weights = every_outcome(positions, **capture)
    every = DensePositions(positions.probs_RV[rows], positions.next_ids_R[rows])
    return dense_target(to_target(sample(every, u, **capture), every.next_ids_R)), rows, weights


def mean(values, rows, weights):
    out = np.zeros((rows.max() + 1, values.shape[1]))
    np.add.at(out, rows, weights[:, None] * values)
    return out


SAMPLED = {"mode": "sampled"}
CAPTURES: list[dict[str, Any]] = [{}, {"tau": 0.2}, {"tail_max": 2}, {"head_max": 3}, SAMPLED, {**SAMPLED, "draws": 50}]


@pytest.mark.parametrize("capture", CAPTURES, ids=str)
def test_the_mean_is_the_teacher(capture):
    positions = random_positions(ROWS, VOCAB, sharpness=1.5)
    np.testing.assert_allclose(mean(*outcomes(positions, **capture)), positions.probs_RV, rtol=0, atol=1e-12)


def test_negative_control_renormalised_sets_are_not_the_teacher():
    """Top-k rescaled to one, and the teacher's probabilities of the drawn set rescaled to one (which looks sampled)."""
    positions = random_positions(ROWS, VOCAB, sharpness=1.5)
    top = sample(positions, np.zeros(ROWS), mode="topk", k=8)
    target = dense_target(to_target(top, positions.next_ids_R, sampled_tail=False))
    target /= target.sum(1, keepdims=True)
    assert np.abs(target - positions.probs_RV).max(1).min() > 0.005
    drawn, rows, weights = outcomes(positions, mode="sampled", draws=12)
    kept = np.where(drawn > 0, positions.probs_RV[rows], 0.0)
    kept /= kept.sum(1, keepdims=True)
    assert np.abs(mean(kept, rows, weights) - positions.probs_RV).max(1).min() > 0.005


def noise(positions, **capture):
    """E |t̂ - t|² per row, exactly."""
    values, rows, weights = outcomes(positions, **capture)
    return np.bincount(rows, weights * ((values - positions.probs_RV[rows]) ** 2).sum(1))


def tail_of(positions, **capture):
    columns = sample(positions, np.zeros(ROWS), **capture)
    tail = positions.probs_RV.copy()
    for row, head in enumerate(columns.head_ids):
        tail[row, head] = 0.0
    return tail, tail.sum(1), np.array([len(ids) for ids in columns.tail_ids])


@pytest.mark.parametrize("capture", CAPTURES, ids=str)
def test_the_noise_of_systematic_draws(capture):
    """(r/n)² sum f (1 - f) with f the broken part of n t / r: a token is drawn floor or floor + 1 times."""
    positions = random_positions(ROWS, VOCAB, sharpness=1.0)
    tail, r, n = tail_of(positions, **capture)
    times = tail * (n / r)[:, None]
    broken = times % 1.0
    got = noise(positions, **capture)
    np.testing.assert_allclose(got, (r / n) ** 2 * (broken * (1 - broken)).sum(1), rtol=1e-9)
    simple = r**2 / n - (tail**2).sum(1)
    light = (times <= 1).all(1)
    np.testing.assert_allclose(got[light], simple[light], rtol=1e-9)
    if not light.all():  # the control: r²/n - S2 is not the noise where a token outweighs a draw
        assert (got[~light] > simple[~light] * 1.0001).all()


def test_systematic_cases_are_of_both_kinds():
    """So that neither branch above is empty."""
    positions = random_positions(ROWS, VOCAB, sharpness=1.0)
    kinds = set()
    for capture in CAPTURES:
        tail, r, n = tail_of(positions, **capture)
        kinds |= set((tail * (n / r)[:, None] <= 1).all(1).tolist())
    assert kinds == {True, False}


@pytest.mark.parametrize("head_size", [0, 2])
def test_the_noise_of_independent_draws(head_size):
    """(r² - S2) / n with replacement, over every tuple of draws; an empty head: (1 - sum t²) / n. Systematic: less."""
    t = np.sort(random_positions(1, 6, sharpness=0.7).probs_RV[0])[::-1]
    tail, n = t[head_size:], 3
    r, mean_of, square = tail.sum(), np.zeros(len(tail)), 0.0
    for draws in product(range(len(tail)), repeat=n):
        chance = np.prod(tail[list(draws)] / r)
        target = np.bincount(draws, minlength=len(tail)) * r / n
        mean_of += chance * target
        square += chance * ((target - tail) ** 2).sum()
    np.testing.assert_allclose(mean_of, tail, atol=1e-12)
    assert square == pytest.approx((r**2 - (tail**2).sum()) / n, rel=1e-9)
    broken = tail * n / r % 1.0
    assert (r / n) ** 2 * (broken * (1 - broken)).sum() < 0.9 * square


@pytest.mark.parametrize("capture", CAPTURES, ids=str)
def test_mass_is_one_after_float16_and_would_not_be_without_rescaling(capture):
    positions = random_positions(50, VOCAB, sharpness=2.0, seed=3)
    columns = sample(positions, np.full(50, 0.3), **capture)
    target = to_target(columns, positions.next_ids_R, codec=np.float16, dtype=torch.float32)
    assert float((total_mass(target) - 1).abs().max()) < 1e-6
    stored = [np.exp(np.log(probs).astype(np.float16).astype(float)).sum() for probs in columns.head_probs]
    raw = np.array(stored) + np.exp(np.log(np.array(columns.tail_mass)).astype(np.float16).astype(float))
    assert np.abs(raw - 1).max() > 2e-5


def test_the_next_token_is_in_every_head():
    positions = random_positions(50, VOCAB, seed=3)
    for capture in (*CAPTURES, {"mode": "topk"}):
        columns = sample(positions, np.full(50, 0.3), **capture)
        assert all(y in head for y, head in zip(positions.next_ids_R, columns.head_ids, strict=True))
