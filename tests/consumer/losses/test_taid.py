"""TAID against dense float64: its target, what the draws and the bucket make of it, and its schedule."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import LossMismatchError, LossParameterError, Objective, SparseTarget, get_loss
from logitcask_consumer.losses.formulas.taid import Taid
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.reference_sampler import DensePositions, every_outcome, random_positions, sample, to_target

ROWS, HIDDEN, VOCAB = 6, 5, 40


def student(rows=ROWS, vocab=VOCAB):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()
    return hidden, torch.randn(vocab, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()


def dense_taid(logits, t, share):
    """By the definition: the interpolated logits' softmax, held fixed, and the KL to it."""
    q = torch.softmax((1 - share) * logits.detach() + share * t.log(), -1)
    return (q * (q.log() - torch.log_softmax(logits, -1))).sum()


def dense(positions, share):
    hidden, weight = student()
    value = dense_taid(hidden @ weight.T, torch.from_numpy(positions.probs_RV), share)
    return float(value.detach()), torch.autograd.grad(value, (hidden, weight))


def fused(spec, target, hidden, weight, **options):
    terms = Objective.parse(spec).terms(options.pop("progress", 0.0))
    loss = distillation_loss(hidden, LMHead(weight_VD=weight), target, terms, **options).loss
    return float(loss.detach()), torch.autograd.grad(loss, (hidden, weight))


def mean_over_u(spec, positions, *, logits=None, **capture):
    """The exact mean over the sampler's one uniform; of a free table of logits where one is given."""
    hidden, weight = student() if logits is None else (torch.eye(len(logits), dtype=torch.float64), logits.T)
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    rows, u, weights = every_outcome(positions, **capture)
    every = DensePositions(positions.probs_RV[rows], positions.next_ids_R[rows])
    target = to_target(sample(every, u, **capture), every.next_ids_R)
    terms = Objective.parse(spec).terms(0.0)
    weights_T = torch.from_numpy(weights)
    loss = distillation_loss(hidden[rows], LMHead(weight_VD=weight), target, terms, weights_T=weights_T).loss
    return float(loss.detach()), torch.autograd.grad(loss, (hidden, weight))


def relative_error(got, want):
    gap = sum((g - w).norm() ** 2 for g, w in zip(got, want, strict=True)) ** 0.5
    return float(gap / sum(w.norm() ** 2 for w in want) ** 0.5)


@pytest.mark.parametrize("tail", ["draws", "ghost"])
@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_whole_vocabulary_equals_dense(tail, share):
    positions = random_positions(ROWS, VOCAB)
    target = to_target(sample(positions, np.zeros(ROWS), tau=1e-12, head_max=VOCAB), positions.next_ids_R)
    value, gradients = fused(f"taid:start={share},tail={tail}", target, *student(), block_rows=4)
    expected, wanted = dense(positions, share)
    assert abs(value - expected) < 1e-10
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_negative_control_another_share_is_noticed():
    positions = random_positions(ROWS, VOCAB)
    target = to_target(sample(positions, np.zeros(ROWS), tau=1e-12, head_max=VOCAB), positions.next_ids_R)
    _, gradients = fused("taid:start=0.45", target, *student())
    assert relative_error(gradients, dense(positions, 0.4)[1]) > 0.02


def near_the_teacher(positions):
    """Logits of a student that knows something, and value and gradient of the dense loss there."""
    noise = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits = torch.from_numpy(np.log(positions.probs_RV)) + noise
    hidden, weight = torch.eye(ROWS, dtype=torch.float64).requires_grad_(), logits.T.clone().requires_grad_()

    def wanted(share):
        value = dense_taid(hidden @ weight.T, torch.from_numpy(positions.probs_RV), share)
        return float(value.detach()), torch.autograd.grad(value, (hidden, weight))

    return logits, wanted


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_draws_are_consistent(share):
    """The exact mean over u is off by a part that vanishes with the number of draws."""
    positions = random_positions(ROWS, VOCAB, sharpness=1.0)
    logits, dense_at = near_the_teacher(positions)
    expected, wanted = dense_at(share)
    value_off, gradient_off = [], []
    for draws in (2, 8, 32, 128, 512):
        mean, gradients = mean_over_u(f"taid:start={share}", positions, logits=logits, mode="sampled", draws=draws)
        value_off.append(abs(mean - expected) / expected)
        gradient_off.append(relative_error(gradients, wanted))
    assert gradient_off[0] > 1e-2  # the control: with few draws it is not unbiased
    for errors in (value_off, gradient_off):
        assert errors[-1] < 1e-3
        assert all(late < early / 2 for early, late in pairwise(errors))


def test_negative_control_the_bucket_is_not_consistent():
    """It does not see the tail's shape however much is recorded of it."""
    positions = random_positions(ROWS, VOCAB, sharpness=1.0)
    logits, dense_at = near_the_teacher(positions)
    spec = "taid:start=0.6,tail=ghost"
    mean, gradients = mean_over_u(spec, positions, logits=logits, mode="sampled", draws=128)
    expected, wanted = dense_at(0.6)
    assert abs(mean - expected) > 0.1 * expected
    assert relative_error(gradients, wanted) > 0.1


@pytest.mark.parametrize("tail", ["draws", "ghost"])
def test_the_teacher_is_the_optimum_with_any_number_of_draws(tail):
    positions = random_positions(ROWS, VOCAB, sharpness=1.5)
    spec = f"taid:start=0.3,tail={tail}"
    logits = torch.from_numpy(np.log(positions.probs_RV)) + 2.0
    value, gradients = mean_over_u(spec, positions, logits=logits, tau=0.2)
    assert abs(value) < 1e-10
    assert all(float(gradient.abs().max()) < 1e-12 for gradient in gradients)
    moved = logits + torch.linspace(-1, 1, VOCAB)  # the control: elsewhere it is none
    _, gradients = mean_over_u(spec, positions, logits=moved, tau=0.2)
    assert float(gradients[1].abs().max()) > 1e-2


def given(column):
    assert column is not None
    return column


def test_its_gradient_is_that_of_forward_kl_to_its_target():
    """P - q̂: forward_kl, which passes gradcheck, on a target that holds q̂ gives the same."""
    positions, share = random_positions(ROWS, VOCAB, sharpness=1.5), 0.4
    target = to_target(sample(positions, np.full(ROWS, 0.37)), positions.next_ids_R)
    hidden, weight = student()
    logp = torch.log_softmax(hidden @ weight.T, -1).detach()
    log_p_H, log_p_N = logp[target.head_rows_H, target.head_ids_H], logp[target.tail_rows_N, target.tail_ids_N]
    mixed_H = ((1 - share) * log_p_H).exp() * target.head_weights_H**share
    mixed_N = target.tail_weights_N * ((1 - share) * (log_p_N - given(target.tail_logprobs_N))).exp()
    z_R = target.head_sum(mixed_H) + target.tail_sum(mixed_N)
    columns = {name: getattr(target, name) for name in SparseTarget.__slots__}
    columns |= {
        "head_weights_H": mixed_H / z_R[target.head_rows_H],
        "tail_weights_N": mixed_N / z_R[target.tail_rows_N],
    }
    _, want = fused("forward_kl", SparseTarget(**columns), hidden, weight)
    _, got = fused(f"taid:start={share}", target, hidden, weight)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_share_of_one_is_forward_kl():
    positions = random_positions(ROWS, VOCAB, sharpness=1.5)
    target = to_target(sample(positions, np.full(ROWS, 0.37)), positions.next_ids_R)
    hidden, weight = student()
    for taid, plain in (("taid:start=1", "forward_kl"), ("taid:start=1,tail=ghost", "ghost_kl")):
        for got, want in zip(*(fused(spec, target, hidden, weight)[1] for spec in (taid, plain)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_hoelder_bounds_z_but_not_the_loss():
    """The bucket's Z is never too small; the loss lies on either side, so it is called biased and not a bound."""
    positions, share = random_positions(1, VOCAB), 0.4
    columns = sample(positions, np.zeros(1), mode="topk", k=4)
    hidden, weight = student(rows=1)
    t, p = torch.from_numpy(positions.probs_RV[0]), torch.softmax(hidden @ weight.T, -1)[0].detach()
    rest = torch.ones(VOCAB, dtype=torch.bool)
    rest[columns.head_ids[0]] = False
    part = (p[rest] ** (1 - share) * t[rest] ** share).sum()
    assert part < p[rest].sum() ** (1 - share) * t[rest].sum() ** share
    target = to_target(columns, positions.next_ids_R, sampled_tail=False)
    below, _ = fused(f"taid:start={share},tail=ghost", target, hidden, weight)
    assert below < float(dense_taid(p.log()[None], t[None], share))
    # Most of the student's tail has the head's ratio t / p, and one token with little of p has most of the teacher's.
    t, p = torch.tensor([[0.5, 0.055, 0.445]]).double(), torch.tensor([[0.9, 0.099, 0.001]]).double()
    few = DensePositions(t.numpy(), np.array([0]))
    target = to_target(sample(few, np.zeros(1), mode="topk", k=1), few.next_ids_R, sampled_tail=False)
    ones = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    above, _ = fused("taid:start=0.2,tail=ghost", target, ones, p.log().T.requires_grad_())
    assert above > 2 * float(dense_taid(p.log(), t, 0.2))


def test_float32_far_from_the_teacher():
    """p^(1-l) t^l below the smallest float32 everywhere on the entries; also an empty bucket."""
    positions = random_positions(2, VOCAB)
    columns = sample(positions, np.full(2, 0.5), tau=0.1)
    everything = sample(positions, np.zeros(2), tau=1e-12, head_max=VOCAB)
    for tail, records in (("draws", columns), ("ghost", columns), ("ghost", everything)):
        results = []
        for dtype in (torch.float64, torch.float32):
            target = to_target(records, positions.next_ids_R, dtype=dtype)
            weight = torch.zeros(VOCAB, 1, dtype=dtype)
            weight[0] = 700.0
            hidden = torch.ones(2, 1, dtype=dtype, requires_grad=True)
            results.append(fused(f"taid:start=0.4,tail={tail}", target, hidden, weight.requires_grad_()))
        (exact, exact_gradients), (value, gradients) = results
        assert value == pytest.approx(exact, rel=1e-5)
        torch.testing.assert_close(gradients[1].double(), exact_gradients[1], rtol=1e-4, atol=1e-5)


def taid(loss):
    assert isinstance(loss, Taid)
    return loss


def test_the_schedule():
    objective = Objective.parse("taid:start=0.2,end=0.8")
    found = [taid(objective.terms(progress)[0][1]).start for progress in (0.0, 0.25, 1.0)]
    assert found == pytest.approx([0.2, 0.35, 0.8])
    assert taid(get_loss("taid:start=0.2,lead=1e3")).share(0.5) == pytest.approx(1.0)
    ahead = taid(get_loss("taid:lead=2.5"))
    assert ahead.share(0.1) == pytest.approx(1 - 0.6 * math.exp(-0.25))
    assert ahead.share(1.0) == 1.0
    positions = random_positions(ROWS, VOCAB)
    target = to_target(sample(positions, np.zeros(ROWS), tau=1e-12, head_max=VOCAB), positions.next_ids_R)
    value, _ = fused("taid:start=0.2,end=0.8", target, *student(), progress=0.5)
    assert abs(value - dense(positions, 0.5)[0]) < 1e-10


@pytest.mark.parametrize(("steps", "noise"), [(2_000, 0.02), (10_000, 0.1), (40_000, 0.1)])
def test_the_papers_rule_is_the_curve(steps, noise):
    """Its update with a noisy falling loss, run step by step, against lead = alpha steps / 2."""
    rng, alpha, beta, share, momentum = np.random.default_rng(0), 5e-4, 0.99, 0.4, 0.0
    x = np.arange(1, steps + 1) / steps
    losses = (1.0 + 9.0 * np.exp(-30 * x)) * np.exp(noise * rng.normal(size=steps))
    curve = taid(get_loss(f"taid:lead={alpha * steps / 2}"))
    worst, line = 0.0, 0.0
    for at in range(1, steps):
        momentum = beta * momentum + (1 - beta) * (losses[at - 1] - losses[at]) / losses[at - 1]
        step = alpha / (1 + math.exp(-momentum)) * (1 - share)
        share = min(1.0, max(0.4 + 0.6 * x[at], share + step))
        worst, line = max(worst, abs(share - curve.share(x[at]))), max(line, share - (0.4 + 0.6 * x[at]))
    assert worst < 0.01
    if steps == 40_000:
        assert line > 0.2  # the control: the line alone would be far from it


@pytest.mark.parametrize("spec", ["taid:start=0", "taid:start=0.8,end=0.5", "taid:end=2", "taid:lead=-1"])
def test_schedules_that_are_none_are_refused(spec):
    with pytest.raises(LossParameterError, match="taid"):
        get_loss(spec)


def test_records_without_logprobs_of_the_draws_are_refused():
    with pytest.raises(LossMismatchError, match=r"tail_logprobs=true.*ghost_taid"):
        Objective.parse("taid").require(CaptureSpec())
    Objective.parse("ghost_taid").require(CaptureSpec(mode="topk"))
