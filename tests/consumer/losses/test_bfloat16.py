"""In bfloat16 no loss errs more than its plain dense autograd in bfloat16, both against dense float64."""

import numpy as np
import pytest
import torch

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import LOSSES, get_loss
from tests.support.consumer.reference_sampler import random_positions, sample, to_target

ROWS, HIDDEN, VOCAB, TEMPERATURE = 64, 16, 200, 2.0
SPECS = [*LOSSES, "forward_kl:tail_weight=0.5", f"forward_kl:temperature={TEMPERATURE:g}"]


class DenseStudent:
    """What a formula reads, each value taken from a whole [rows, vocabulary] log-softmax by plain autograd."""

    def __init__(self, logits_RV, target):
        logp_RV = torch.log_softmax(logits_RV, -1)
        inside_RV = torch.zeros_like(logp_RV, dtype=torch.bool)
        inside_RV[target.head_rows_H, target.head_ids_H] = True
        # Formulas add up in the target's type, which is never below float32: half a formula in bfloat16 says nothing.
        wide_RV = logp_RV.to(target.tail_mass_R.dtype)
        self.head_logprobs_H = wide_RV[target.head_rows_H, target.head_ids_H]
        self.tail_logprobs_N = wide_RV[target.tail_rows_N, target.tail_ids_N]
        self.next_logprobs_R = wide_RV[torch.arange(len(wide_RV)), target.next_ids_R]
        self.log_tail_R = torch.logsumexp(wide_RV.masked_fill(inside_RV, -torch.inf), -1)
        self._wide_RV = wide_RV

    def log_power_sum_R(self, exponent):
        return torch.logsumexp(exponent * self._wide_RV, -1)


def plain(loss, student_of_it, target, softmax_in):
    """Value and gradients (hidden, weight) of the dense computation."""
    hidden, weight = student_of_it
    logits = (hidden @ weight.T).to(softmax_in) / loss.temperature
    value = loss.per_row(DenseStudent(logits, target), target, loss.row_scale(target)).sum()
    return float(value.detach()), torch.autograd.grad(value, (hidden, weight))


@pytest.fixture(scope="module")
def positions():
    return random_positions(ROWS, VOCAB)


def target_of(positions, dtype):
    columns = sample(positions, np.random.default_rng(0).random(ROWS))
    log_z_R = np.log((positions.probs_RV ** (1 / TEMPERATURE)).sum(1))
    documents = np.arange(ROWS) // 10
    return to_target(columns, positions.next_ids_R, dtype=dtype, documents=documents, log_z_R=log_z_R)


def student(dtype):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).to(torch.bfloat16)
    weight = (torch.randn(VOCAB, HIDDEN, generator=generator) / 2).to(torch.bfloat16)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def distance(got, want):
    """Relative error per gradient."""
    return [float((g.double() - w).norm() / w.norm()) for g, w in zip(got, want, strict=True)]


@pytest.mark.parametrize("softmax_in", [torch.bfloat16, torch.float32], ids=["bf16-softmax", "f32-softmax"])
@pytest.mark.parametrize("spec", SPECS)
def test_no_worse_than_plain_autograd(spec, softmax_in, positions):
    """The plain computation has bfloat16 products; its softmax is in bfloat16, or in float32 as careful trainers do."""
    loss = get_loss(spec)
    truth, exact = plain(loss, student(torch.float64), target_of(positions, torch.float64), torch.float64)
    target = target_of(positions, torch.float32)
    naive_value, naive = plain(loss, student(torch.bfloat16), target, softmax_in)
    hidden, weight = student(torch.bfloat16)
    ours = distillation_loss(hidden, LMHead(weight_VD=weight), target, [(1.0, loss)], block_rows=9).loss
    mine = torch.autograd.grad(ours, (hidden, weight))
    assert abs(float(ours.detach()) - truth) <= abs(naive_value - truth) + 1e-3 * abs(truth)
    for got, allowed in zip(distance(mine, exact), distance(naive, exact), strict=True):
        assert got <= allowed + 1e-3
        assert got < 0.05


@pytest.mark.parametrize("spec", SPECS)
def test_the_plain_computation_is_the_loss(spec, positions):
    """In float64 both are one, so that the comparison above is with the same thing."""
    loss, target = get_loss(spec), target_of(positions, torch.float64)
    value, want = plain(loss, student(torch.float64), target, torch.float64)
    hidden, weight = student(torch.float64)
    ours = distillation_loss(hidden, LMHead(weight_VD=weight), target, [(1.0, loss)], block_rows=9).loss
    assert float(ours.detach()) == pytest.approx(value, rel=1e-10)
    assert max(distance(torch.autograd.grad(ours, (hidden, weight)), want)) < 1e-10


def test_negative_control_a_coarser_head_fails(positions):
    """The bar is not met by anything: a head rounded to eighths errs more than the plain computation."""
    loss, target = get_loss("forward_kl"), target_of(positions, torch.float32)
    _, exact = plain(loss, student(torch.float64), target_of(positions, torch.float64), torch.float64)
    _, naive = plain(loss, student(torch.bfloat16), target, torch.bfloat16)
    hidden, weight = student(torch.bfloat16)
    coarse = (weight.detach() * 8).round().div(8).requires_grad_()
    ours = distillation_loss(hidden, LMHead(weight_VD=coarse), target, [(1.0, loss)]).loss
    mine = torch.autograd.grad(ours, (hidden, coarse))
    assert all(got > allowed + 1e-3 for got, allowed in zip(distance(mine, exact), distance(naive, exact), strict=True))
