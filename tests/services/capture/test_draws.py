"""Unbiasedness and variance of systematic draws, by quadrature over the offset; biased targets fail the same check.

Over R evenly spaced offsets the n R points form one even grid on the tail's mass, so each token is hit as often as its
mass says, up to one hit: |mean of t-hat - t| <= r / (n R) for every token. That bound is the test; no statistics.
"""

import numpy as np
import pytest

from logitcask_schemas.record.capture_spec import CaptureSpec

GRID = 4001


def quadrature(oracle, spec, row, grid):
    """Records over a grid of offsets for one row of logits, and its dense distribution."""
    uniforms = (np.arange(grid) + 0.5) / grid
    records = oracle.run(spec, np.repeat(row, grid, 0), uniforms=uniforms, rows=64)
    return oracle.cut(records), oracle.dense(row)[0]


def largest_bias(targets, t):
    return np.abs(np.mean(targets, 0) - t).max()


def bound(position, grid):
    return 1.01 * position.tail_mass / max(len(position.tail_ids), 1) / grid + 3e-7


@pytest.mark.parametrize(
    "spec",
    [
        CaptureSpec(logprob_codec="f32"),
        CaptureSpec(tau=0.02, logprob_codec="f32"),
        CaptureSpec(tau=0.001, head_max=3, tail_max=5, logprob_codec="f32"),
        CaptureSpec(mode="sampled", draws=50, logprob_codec="f32"),
        CaptureSpec(mode="sampled", draws=7, pinned_ids=(5,), logprob_codec="f32"),
    ],
    ids=lambda spec: f"{spec.mode}-{spec.tau}",
)
@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_the_target_is_unbiased(oracle, spec, masked):
    row = oracle.logits_rows(1, 1, 300, scale=2.0, masked=masked)
    positions, t = quadrature(oracle, spec, row, GRID)
    assert len(positions[0].tail_ids) > 0
    assert largest_bias([position.target(300) for position in positions], t) <= bound(positions[0], GRID)


@pytest.mark.parametrize("vocab", [49_152, 151_936, 262_144])
def test_the_target_is_unbiased_over_large_vocabularies(oracle, vocab):
    row = oracle.logits_rows(2, 1, vocab)
    positions, t = quadrature(oracle, CaptureSpec(logprob_codec="f32"), row, 201)
    mean = np.zeros(vocab)
    for position in positions:
        mean += position.target(vocab) / len(positions)
    assert np.abs(mean - t).max() <= bound(positions[0], 201)
    # Rare tokens too: every tenth of the tail, by id, gets its mass.
    parts = np.abs(np.add.reduceat(mean - t, np.arange(0, vocab, vocab // 10)))
    assert parts.max() <= 10 * bound(positions[0], 201)


def test_renormalised_top_k_fails_the_check(oracle):
    row = oracle.logits_rows(1, 1, 300, scale=2.0)
    positions, t = quadrature(oracle, CaptureSpec(mode="topk", k=12, logprob_codec="f32"), row, 5)
    targets = []
    for position in positions:
        weights = np.exp(position.head_logprobs)
        target = np.zeros(300)
        target[position.head_ids] = weights / weights.sum()
        targets.append(target)
    assert largest_bias(targets, t) > 100 * bound(positions[0], GRID)


def test_renormalised_sampled_set_fails_the_check(oracle):
    # Teacher probabilities of the sampled ids, rescaled to one: looks like sampling, is biased.
    row = oracle.logits_rows(1, 1, 300, scale=2.0)
    positions, t = quadrature(oracle, CaptureSpec(mode="sampled", draws=50, logprob_codec="f32"), row, GRID)
    targets = []
    for position in positions:
        ids = np.unique(np.concatenate([position.head_ids, position.tail_ids]))
        target = np.zeros(300)
        target[ids] = t[ids] / t[ids].sum()
        targets.append(target)
    assert largest_bias(targets, t) > 100 * bound(positions[0], GRID)


def test_variance_of_systematic_draws(oracle):
    # Sum over tokens of Var = r^2 / n - sum of tail t^2 where no token outweighs one draw, as in this flat tail.
    row = oracle.logits_rows(3, 1, 2048, scale=0.3)
    positions, t = quadrature(oracle, CaptureSpec(tau=0.05, logprob_codec="f32"), row, GRID)
    tail = np.ones(2048, dtype=bool)
    tail[positions[0].head_ids] = False
    r, n = t[tail].sum(), len(positions[0].tail_ids)
    assert t[tail].max() <= r / n
    square = np.zeros(2048)
    for position in positions:
        square += (position.target(2048) - t) ** 2 / len(positions)
    assert square.sum() == pytest.approx(r**2 / n - (t[tail] ** 2).sum(), rel=0.02)


def test_independent_offsets_per_position_come_from_the_generator(oracle):
    # With the generator's own offsets the mean over many positions approaches t as systematic sampling should.
    row = oracle.logits_rows(4, 1, 300, scale=2.0)
    records = oracle.run(CaptureSpec(logprob_codec="f32"), np.repeat(row, 4000, 0), rows=64)
    mean = np.mean([position.target(300) for position in oracle.cut(records)], 0)
    assert np.abs(mean - oracle.dense(row)[0]).max() < 0.004
