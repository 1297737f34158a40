"""The f-divergences against dense float64: values, gradients, unbiasedness, bounds, and controls that must fail."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import LossMismatchError, LossParameterError, Objective, get_loss
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.reference_sampler import DensePositions, every_outcome, random_positions, sample, to_target

ROWS, HIDDEN, VOCAB = 7, 5, 60


def kl(a, b):
    return (a * (a.log() - b.log())).sum(-1)


# Written from the definitions, not from f: what the losses must be when nothing is left out.
DENSE = {
    "reverse_kl": lambda t, p: kl(p, t),
    "js": lambda t, p: 0.5 * kl(t, 0.5 * (t + p)) + 0.5 * kl(p, 0.5 * (t + p)),
    "js:beta=0.1": lambda t, p: 0.1 * kl(t, 0.1 * t + 0.9 * p) + 0.9 * kl(p, 0.1 * t + 0.9 * p),
    "skew_kl": lambda t, p: kl(t, 0.1 * t + 0.9 * p),
    "skew_reverse_kl": lambda t, p: kl(p, 0.9 * t + 0.1 * p),
    "skew_reverse_kl:alpha=0.5": lambda t, p: kl(p, 0.5 * t + 0.5 * p),
    "tvd": lambda t, p: (t - p).abs().sum(-1) / 2,
}


def alpha_beta(a, b):
    c = a + b
    return lambda t, p: -(t**a * p**b - a / c * t**c - b / c * p**c).sum(-1) / (a * b)


def todi(t, p):
    share = torch.sigmoid(t.log() - p.log()).detach()
    return (share * t * (t / p).log() + (1 - share) * p * (p / t).log()).sum(-1)


DENSE |= {
    "todi": todi,
    "alpha_beta": alpha_beta(0.2, 0.7),
    "alpha_beta:alpha=0.3,beta=0.7": alpha_beta(0.3, 0.7),
    "alpha_beta:alpha=1.5,beta=0.8": alpha_beta(1.5, 0.8),
}
BOUNDED = [spec for spec in DENSE if not spec.startswith("alpha_beta")]


def with_tail(spec, tail):
    if spec.startswith("alpha_beta"):
        return spec
    return f"{spec}{',' if ':' in spec else ':'}tail={tail}"


def student(rows=ROWS, vocab=VOCAB):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(vocab, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()
    return hidden, LMHead(weight_VD=weight)


def dense(spec, positions, hidden, head):
    t = torch.from_numpy(positions.probs_RV)
    value = DENSE[spec](t, torch.softmax(hidden @ head.weight_VD.T, -1)).sum()
    return float(value.detach()), torch.autograd.grad(value, (hidden, head.weight_VD))


def relative_error(got, want):
    gap = sum((g - w).norm() ** 2 for g, w in zip(got, want, strict=True)) ** 0.5
    return float(gap / sum(w.norm() ** 2 for w in want) ** 0.5)


def mean_over_u(spec, positions, **capture):
    """The exact mean over the sampler's one uniform: value and gradients."""
    hidden, head = student()
    rows, u, weights = every_outcome(positions, **capture)
    every = DensePositions(positions.probs_RV[rows], positions.next_ids_R[rows])
    target = to_target(sample(every, u, **capture), every.next_ids_R)
    terms, weights_T = Objective.parse(spec).terms(0.0), torch.from_numpy(weights)
    mean = distillation_loss(hidden[rows], head, target, terms, weights_T=weights_T).loss
    return float(mean.detach()), torch.autograd.grad(mean, (hidden, head.weight_VD))


@pytest.mark.parametrize("tail", ["draws", "ghost"])
@pytest.mark.parametrize("spec", DENSE)
def test_whole_vocabulary_equals_dense(spec, tail):
    positions = random_positions(ROWS, VOCAB)
    hidden, head = student()
    target = to_target(sample(positions, np.zeros(ROWS), tau=1e-12, head_max=VOCAB), positions.next_ids_R)
    terms = Objective.parse(with_tail(spec, tail)).terms(0.0)
    loss = distillation_loss(hidden, head, target, terms, block_rows=3).loss
    value, gradients = dense(spec, positions, hidden, head)
    assert abs(float(loss.detach()) - value) < 1e-10
    for got, want in zip(torch.autograd.grad(loss, (hidden, head.weight_VD)), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("capture", [{}, {"mode": "sampled"}, {"tau": 0.2}, {"tail_max": 2}], ids=str)
@pytest.mark.parametrize("spec", DENSE)
def test_draws_are_unbiased(spec, capture):
    positions = random_positions(ROWS, VOCAB, sharpness=1.5)
    hidden, head = student()
    value, gradients = dense(spec, positions, hidden, head)
    mean, mean_gradients = mean_over_u(with_tail(spec, "draws"), positions, **capture)
    assert abs(mean - value) < 1e-10
    assert relative_error(mean_gradients, gradients) < 1e-10


@pytest.mark.parametrize("spec", BOUNDED)
def test_negative_control_ghost_fails_the_unbiasedness_test(spec):
    positions = random_positions(ROWS, VOCAB, sharpness=1.5)
    hidden, head = student()
    value, gradients = dense(spec, positions, hidden, head)
    mean, mean_gradients = mean_over_u(with_tail(spec, "ghost"), positions)
    assert mean < 0.98 * value
    assert relative_error(mean_gradients, gradients) > 0.03


@pytest.mark.parametrize("spec", BOUNDED)
def test_ghost_is_a_lower_bound_that_grows_with_the_head(spec):
    for seed in range(20):
        positions = random_positions(ROWS, VOCAB, seed=seed)
        hidden, head = student()
        value, _ = dense(spec, positions, hidden, head)
        bounds = []
        for k in (1, 4, 16, 40):
            columns = sample(positions, np.zeros(ROWS), mode="topk", k=k)
            target = to_target(columns, positions.next_ids_R, sampled_tail=False)
            terms = Objective.parse(with_tail(spec, "ghost")).terms(0.0)
            bounds.append(float(distillation_loss(hidden, head, target, terms).loss.detach()))
        assert all(low <= high + 1e-12 for low, high in zip(bounds, [*bounds[1:], value], strict=True))


@pytest.mark.parametrize("spec", BOUNDED)
def test_ghost_is_exact_where_the_tails_have_one_shape(spec):
    """The student is the teacher's distribution with the mass between head and tail moved."""
    positions = random_positions(1, VOCAB)
    columns = sample(positions, np.zeros(1), mode="topk", k=5)
    inside = np.isin(np.arange(VOCAB), columns.head_ids[0])
    p = np.where(inside, 0.4 * positions.probs_RV[0], positions.probs_RV[0])
    p = torch.from_numpy(p / p.sum())[None]
    head = LMHead(weight_VD=p.log().T.contiguous())
    target = to_target(columns, positions.next_ids_R, sampled_tail=False)
    terms = Objective.parse(with_tail(spec, "ghost")).terms(0.0)
    got = distillation_loss(torch.ones(1, 1, dtype=torch.float64), head, target, terms).loss
    expected = DENSE[spec](torch.from_numpy(positions.probs_RV), p).sum()
    assert abs(float(got - expected)) < 1e-12


@pytest.mark.parametrize("spec", ["js", "js:beta=0.1", "skew_reverse_kl", "skew_reverse_kl:alpha=0.5", "tvd"])
def test_control_variate_cuts_the_noise(spec):
    """Without c s - c rho the same estimate is noisier."""
    loss = get_loss(with_tail(spec, "draws"))
    positions = random_positions(1, VOCAB, sharpness=1.5)
    hidden, head = student(rows=1)
    grid = (np.arange(200) + 0.5) / 200
    every = DensePositions(np.tile(positions.probs_RV, (200, 1)), np.tile(positions.next_ids_R, 200))
    target = to_target(sample(every, grid, tau=0.2), every.next_ids_R)

    plain_type: Any = type("Plain", (type(loss),), {"slope": 0.0})
    plain = plain_type(**{name: getattr(loss, name) for name in (f.name for f in fields(loss))})
    spread = {}
    for kind, terms in (("variate", [(1.0, loss)]), ("plain", [(1.0, plain)])):
        with torch.no_grad():
            values = distillation_loss(hidden.repeat(200, 1), head, target, terms).terms_KT[0]
        spread[kind] = float(values.std())
    assert spread["variate"] < 0.7 * spread["plain"]


@settings(max_examples=40, deadline=None)
@given(
    spec=st.sampled_from([*DENSE, "forward_kl:tail_weight=0.5"]),
    weights=st.lists(st.floats(0.0, 2.0), min_size=2, max_size=2),
    seed=st.integers(0, 99),
    block_rows=st.integers(1, 9),
)
def test_a_mix_is_the_weighted_sum_of_its_losses(spec, weights, seed, block_rows):
    """Terms share reductions and one gradient pass; apart, each has its own."""
    positions = random_positions(ROWS, VOCAB, seed=seed)
    hidden, head = student()
    target = to_target(sample(positions, np.full(ROWS, 0.37)), positions.next_ids_R)
    row_weights = torch.rand(ROWS, dtype=torch.float64)
    losses = [get_loss(spec), get_loss("cross_entropy")]

    def run(terms):
        loss = distillation_loss(hidden, head, target, terms, weights_T=row_weights, block_rows=block_rows).loss
        return loss.detach(), torch.autograd.grad(loss, (hidden, head.weight_VD))

    value, gradients = run(list(zip(weights, losses, strict=True)))
    apart = [run([(1.0, loss)]) for loss in losses]
    expected = sum(w * v for w, (v, _) in zip(weights, apart, strict=True))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for i, got in enumerate(gradients):
        want = sum(w * g[i] for w, (_, g) in zip(weights, apart, strict=True))
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("spec", ["js", "skew_kl", "skew_reverse_kl", "tvd", "reverse_kl:tail=draws"])
def test_records_without_logprobs_of_the_draws_are_refused(spec):
    with pytest.raises(LossMismatchError, match=r"tail_logprobs=true.*ghost"):
        Objective.parse(spec).require(CaptureSpec())
    Objective.parse(spec).require(CaptureSpec(tail_logprobs=True))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("js:beta=1", "strictly between 0 and 1"),
        ("js:gamma=1", "its parameters are: tail, beta"),
        ("js:tail=cut", "one of draws, ghost"),
        ("js:beta=much", "is a number"),
        ("cross_entropy:x=1", "its parameters are: none"),
        ("half*js", "is no weight"),
        ("wsd(1,0.9,0.9)*js", "together at most 1"),
        ("-1*js", "must not be negative"),
        ("js + js", "names a loss twice"),
    ],
)
def test_what_is_no_loss_is_refused(spec, message):
    with pytest.raises(LossParameterError, match=message):
        Objective.parse(spec)


def test_schedules():
    objective = Objective.parse("wsd(0.9,0.1,0.2)*forward_kl + linear(1,0)*cross_entropy + 1e-1*ghost_js")
    assert [loss.spec for loss in objective.losses] == ["forward_kl", "cross_entropy", "js:tail=ghost"]
    for progress, expected in (
        (0.0, (0.0, 1.0)),
        (0.05, (0.45, 0.95)),
        (0.5, (0.9, 0.5)),
        (0.9, (0.45, 0.1)),
        (1, (0, 0)),
    ):
        got = [weight for weight, _ in objective.terms(progress)]
        assert got == pytest.approx([*expected, 0.1])
    assert math.isclose(Objective.parse("forward_kl").with_cross_entropy(0.25).terms(0.3)[0][0], 0.75)
