"""Unbiasedness, variance and equality of multinomial draws; biased targets and other samplers fail the same checks.

Quadrature as for systematic draws: each of a row's n numbers runs over its own permutation of R evenly spaced values,
so every draw hits a token as often as its mass says, up to one hit: |mean of t-hat - t| <= n (r / n) / R = r / R.
"""

import numpy as np
import pytest
import torch

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.capture import RecordCapture, pack_wire
from logitcask_services.capture.draws import multinomial_offsets, tail_draws
from tests.support.wire_encoding import encode_wire

GRID = 2001


def multinomial(**options):
    return CaptureSpec(sampler="multinomial", logprob_codec="f32", **options)


SPECS = [
    multinomial(),
    multinomial(tau=0.02),
    multinomial(tau=0.001, head_max=3, tail_max=5),
    multinomial(mode="sampled", draws=50),
    multinomial(mode="sampled", draws=7, pinned_ids=(5,)),
]


def quadrature(oracle, spec, row, grid):
    """Records over a grid of numbers per draw for one row of logits, and its dense distribution."""
    generator = np.random.default_rng(0)
    even = (np.arange(grid) + 0.5) / grid
    uniforms = np.stack([generator.permutation(even) for _ in range(spec.draws)], 1)
    records = oracle.run(spec, np.repeat(row, grid, 0), uniforms=uniforms, rows=64)
    return oracle.cut(records), oracle.dense(row)[0]


def largest_bias(targets, t):
    return np.abs(np.mean(targets, 0) - t).max()


def bound(position, grid):
    return 1.01 * position.tail_mass / grid + 3e-7


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.mode}-{spec.tau}-{spec.draws}")
@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_the_target_is_unbiased(oracle, spec, masked):
    row = oracle.logits_rows(1, 1, 300, scale=2.0, masked=masked)
    positions, t = quadrature(oracle, spec, row, GRID)
    assert len(positions[0].tail_ids) > 0
    assert all((np.diff(position.tail_ids) >= 0).all() for position in positions)
    assert largest_bias([position.target(300) for position in positions], t) <= bound(positions[0], GRID)


@pytest.mark.parametrize("vocab", [49_152, 151_936, 262_144])
def test_the_target_is_unbiased_over_large_vocabularies(oracle, vocab):
    row = oracle.logits_rows(2, 1, vocab)
    positions, t = quadrature(oracle, multinomial(), row, 201)
    mean = np.zeros(vocab)
    for position in positions:
        mean += position.target(vocab) / len(positions)
    assert np.abs(mean - t).max() <= bound(positions[0], 201)
    parts = np.abs(np.add.reduceat(mean - t, np.arange(0, vocab, vocab // 10)))
    assert parts.max() <= 10 * bound(positions[0], 201)


@pytest.mark.parametrize("wrong", ["each distinct draw weighs the same", "teacher probabilities, rescaled"])
def test_wrong_weights_fail_the_check(oracle, wrong):
    row = oracle.logits_rows(1, 1, 300, scale=2.0)
    positions, t = quadrature(oracle, multinomial(mode="sampled", draws=50), row, GRID)
    targets = []
    for position in positions:
        target, ids = position.target(300), np.unique(position.tail_ids)
        weights = t[ids] if "rescaled" in wrong else np.ones(len(ids))
        target[ids] = position.tail_mass * weights / weights.sum()
        targets.append(target)
    assert largest_bias(targets, t) > 100 * bound(positions[0], GRID)


def variance(oracle, spec, row, count):
    """Sum over the vocabulary of the variance of t-hat with the generator's own numbers, and r, n, S2."""
    positions = oracle.cut(oracle.run(spec, np.repeat(row, count, 0), rows=64))
    t = oracle.dense(row)[0]
    tail = np.ones(len(t), dtype=bool)
    tail[positions[0].head_ids] = False
    square = sum(((position.target(len(t)) - t) ** 2).sum() for position in positions) / count
    return square, t[tail].sum(), len(positions[0].tail_ids), (t[tail] ** 2).sum()


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[3]], ids=["threshold", "sampled"])
def test_variance_is_that_of_independent_draws(oracle, spec):
    # (r^2 - S2) / n, S2 = sum of tail t^2. Over 4,000 positions the mean is within 3 %.
    square, r, n, s2 = variance(oracle, spec, oracle.logits_rows(1, 1, 300, scale=2.0), 4000)
    assert square == pytest.approx((r**2 - s2) / n, rel=0.03)
    systematic = spec.model_copy(update={"sampler": "systematic"})
    square, *_ = variance(oracle, systematic, oracle.logits_rows(1, 1, 300, scale=2.0), 4000)
    assert square < 0.9 * (r**2 - s2) / n


def test_draws_equal_a_lookup_on_the_whole_running_sum():
    # The two-level lookup against the definition: each number on the running sum of the row, ids in order.
    generator = torch.Generator().manual_seed(3)
    mass_RW = torch.rand(40, 512, generator=generator) * (torch.rand(40, 512, generator=generator) < 0.3)
    sums_RC = mass_RW.view(40, -1, 64).sum(-1).to(torch.float64)
    counts_R = torch.randint(0, 30, (40,), generator=generator)
    uniforms_Rn = torch.rand(40, 30, dtype=torch.float64, generator=generator)
    draws = tail_draws(mass_RW, sums_RC, counts_R, multinomial_offsets(uniforms_Rn, counts_R), 64, gathered=9 * 64)
    running_RW = mass_RW.double().cumsum(-1).numpy()
    for row, count in enumerate(counts_R.tolist()):
        points = uniforms_Rn[row, :count].numpy() * running_RW[row, -1]
        expected = np.sort(np.searchsorted(running_RW[row], points, side="right"))
        assert draws.ids_N[draws.rows_N == row].tolist() == expected.tolist()


@pytest.mark.parametrize("spec", [SPECS[1], SPECS[3]], ids=["threshold", "sampled"])
def test_the_neighbours_of_a_row_change_no_byte(oracle, spec):
    # A flat row beside peaked ones: how many numbers a batch needs must not move those of its rows.
    flat, peaked = oracle.logits_rows(7, 4, 1024, scale=0.2), oracle.logits_rows(8, 4, 1024, scale=9.0)
    logits = torch.from_numpy(np.concatenate([peaked, flat]))
    keys, positions, next_ids = torch.full((8,), 3), torch.arange(8), torch.arange(8)
    whole = RecordCapture(spec, 1024)(logits.clone(), next_ids, keys, positions)
    for i, part in enumerate(whole.split([1] * 8)):
        only = slice(i, i + 1)
        alone = RecordCapture(spec, 1024)(logits[only].clone(), next_ids[only], keys[only], positions[only])
        assert torch.equal(pack_wire(alone, 1024), pack_wire(part, 1024))


def test_both_samplers_differ_only_in_the_draws(oracle):
    logits = oracle.logits_rows(5, 20, 300, scale=1.0)
    systematic = oracle.run(CaptureSpec(logprob_codec="f32"), logits)
    independent = oracle.run(multinomial(), logits)
    assert independent.tail_ids_N.tolist() != systematic.tail_ids_N.tolist()
    for name in ("head_counts_P", "head_ids_H", "head_logprobs_H", "tail_counts_P", "log_tail_mass_P", "entropy_P"):
        assert getattr(independent, name).tobytes() == getattr(systematic, name).tobytes()


def test_modes_without_draws_ignore_the_sampler(oracle):
    logits = oracle.logits_rows(5, 5, 300)
    plain, odd = CaptureSpec(mode="topk", k=9), CaptureSpec(mode="topk", k=9, sampler="multinomial")
    assert (
        encode_wire(oracle.run(plain, logits), plain).tobytes() == encode_wire(oracle.run(odd, logits), odd).tobytes()
    )
    assert plain.digest() == odd.digest()


def test_the_sampler_is_part_of_the_identity_only_where_it_is_not_systematic():
    spec = CaptureSpec()
    assert "sampler" not in spec.model_dump_json()
    assert "sampler" not in spec.canonical()
    other = spec.model_copy(update={"sampler": "multinomial"})
    assert other.digest() != spec.digest()
    assert CaptureSpec.model_validate_json(other.model_dump_json()) == other
    assert CaptureSpec.model_validate_json(spec.model_dump_json()).sampler == "systematic"
