"""KL, entropy, acceptance and TVD from records: exact on average, and standard errors and intervals that hold."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from logitcask_consumer.report.estimates import DocumentBootstrap
from logitcask_consumer.report.evaluate import measure, metric_kinds
from tests.support.consumer.reference_sampler import (
    DensePositions,
    every_outcome,
    head_rule,
    random_positions,
    sample,
    to_target,
)

ROWS, VOCAB = 6, 40
VALUES = ("kl", "entropy", "acceptance", "tvd")


def student_logits(rows=ROWS, seed=4):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def truth(t, p):
    """By the definitions, [R] each."""
    return {
        "kl": (t * np.log(t / p)).sum(1),
        "entropy": -(p * np.log(p)).sum(1),
        "acceptance": np.minimum(t, p).sum(1),
        "tvd": np.abs(t - p).sum(1) / 2,
    }


def measured(positions, logits, u, *, draws_known=True, **capture):
    target = to_target(
        sample(positions, u, **capture), positions.next_ids_R, sampled_tail=capture.get("mode") != "topk"
    )
    tail = target.tail_logprobs_N if draws_known else None
    entropy_R = torch.from_numpy(positions.entropy_R)
    found = measure(logits.clone(), target, entropy_R, tail, rule=head_rule(**capture))
    return {name: found[name].numpy() for name in (*VALUES, "acceptance_low", "acceptance_high") if name in found}


def mean_over_u(positions, logits, **capture):
    """The exact mean of every value over the sampler's one uniform, [R] each."""
    rows, u, weights = every_outcome(positions, **capture)
    every = DensePositions(positions.probs_RV[rows], positions.next_ids_R[rows])
    found = measured(every, logits[torch.from_numpy(rows)], u, **capture)
    return {name: np.bincount(rows, weights * value) for name, value in found.items()}


@pytest.mark.parametrize("capture", [{}, {"mode": "sampled"}, {"tau": 0.2}, {"tail_max": 2}], ids=str)
def test_values_are_exact_on_average(capture):
    positions, logits = random_positions(ROWS, VOCAB, sharpness=1.5), student_logits()
    expected = truth(positions.probs_RV, torch.softmax(logits, -1).numpy())
    got = mean_over_u(positions, logits, **capture)
    for name in VALUES:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-10, atol=1e-12)


def test_negative_control_a_bucket_or_a_shift_is_not():
    positions, logits = random_positions(ROWS, VOCAB, sharpness=1.5), student_logits()
    expected = truth(positions.probs_RV, torch.softmax(logits, -1).numpy())
    bucket = measured(positions, logits, np.zeros(ROWS), draws_known=False, mode="topk", k=5)
    assert not {"tvd", "acceptance"} & bucket.keys(), "a bucket gives no estimate of either"
    assert (bucket["acceptance_high"] > expected["acceptance"] + 1e-3).all()
    assert (bucket["acceptance_low"] < expected["acceptance"] - 1e-3).all()
    shifted = mean_over_u(positions, logits.roll(1, 0))
    assert np.abs(shifted["kl"] - expected["kl"]).min() > 1e-2


def test_kinds_say_which_side_the_truth_is_on():
    drawn = metric_kinds(sampled_tail=True, tail_logprobs=True, ordered_head=True)
    assert [drawn[name] for name in VALUES] == ["unbiased", "exact", "unbiased", "unbiased"]
    bucket = metric_kinds(sampled_tail=False, tail_logprobs=False, ordered_head=True)
    assert (bucket["entropy"], bucket["kl_bound"]) == ("exact", "lower bound")
    assert not {"acceptance", "tvd", "kl"} & bucket.keys()


@dataclass
class World:
    """Documents of unlike sizes and difficulty, more than any trial sees, and the truth over all of them."""

    positions: DensePositions
    logits: torch.Tensor
    documents: list
    truth: dict


@pytest.fixture(scope="module")
def world():
    rng, documents, start = np.random.default_rng(0), [], 0
    for size in rng.integers(3, 12, 300):
        documents.append(np.arange(start, start + size))
        start += size
    of_position = np.repeat(np.arange(300), [len(rows) for rows in documents])
    base = rng.normal(size=(start, VOCAB))
    teacher = base * rng.uniform(0.5, 3.0, 300)[of_position][:, None]
    distance = rng.uniform(0.2, 2.0, 300)[of_position][:, None]
    logits = torch.from_numpy(teacher + distance * rng.normal(size=base.shape))
    t = torch.softmax(torch.from_numpy(teacher), -1).numpy()
    expected = {name: value.mean() for name, value in truth(t, torch.softmax(logits, -1).numpy()).items()}
    return World(DensePositions(t, t.argmax(1)), logits, documents, expected)


def test_intervals_and_standard_errors_hold(world):
    """Trials of 40 documents with new draws each: 95 % intervals cover, and errors are as large as they say.

    The control is the standard error over positions, as if they were independent: far too small.
    """
    trials, rng = 120, np.random.default_rng(1)
    covered, alone = dict.fromkeys(VALUES, 0), dict.fromkeys(VALUES, 0)
    said, off = {name: [] for name in VALUES}, {name: [] for name in VALUES}
    for trial in range(trials):
        chosen = [world.documents[i] for i in rng.integers(0, len(world.documents), 40)]
        rows, numbers = np.concatenate(chosen), np.repeat(np.arange(40), [len(rows) for rows in chosen])
        part = DensePositions(world.positions.probs_RV[rows], world.positions.next_ids_R[rows])
        found = measured(part, world.logits[torch.from_numpy(rows)], rng.random(len(rows)))
        bootstrap = DocumentBootstrap(numbers.astype(np.int32), seed=trial, resamples=400)
        for name in VALUES:
            value = found[name]
            estimate, expected = bootstrap.mean(value), world.truth[name]
            covered[name] += estimate.low <= expected <= estimate.high
            alone[name] += abs(value.mean() - expected) <= 1.96 * value.std() / np.sqrt(len(value))
            said[name].append(estimate.standard_error)
            off[name].append(estimate.value - expected)
    for name in VALUES:
        assert 0.87 <= covered[name] / trials <= 0.99, name
        assert alone[name] / trials < 0.8, name
        assert np.mean(said[name]) == pytest.approx(np.std(off[name]), rel=0.2), name


def test_the_standard_error_of_a_mean_is_the_formula():
    """Against the linearised ratio of sums over documents, and through a function by its slope."""
    rng = np.random.default_rng(2)
    documents = np.repeat(np.arange(50), rng.integers(2, 30, 50)).astype(np.int32)
    values = rng.normal(size=50)[documents] + 0.2 * rng.normal(size=len(documents)) + 3.0
    found = DocumentBootstrap(documents, resamples=20_000).mean(values.astype(np.float32))
    residuals = np.bincount(documents, values - values.mean())
    assert found.standard_error == pytest.approx(np.sqrt((residuals**2).sum()) / len(values), rel=0.05)
    assert found.map(np.exp).standard_error == pytest.approx(np.exp(found.value) * found.standard_error, rel=0.05)


def test_a_single_document_has_no_standard_error():
    found = DocumentBootstrap(np.zeros(5, dtype=np.int32)).mean(np.arange(5, dtype=np.float32))
    assert found.standard_error is None
    assert found.map(np.exp).standard_error is None
