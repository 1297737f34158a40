"""What every registered loss must keep, whatever it computes; a new loss is held to it by being registered."""

import numpy as np
import pytest
import torch

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.head.row_blocks import Scales, row_block_gradient
from logitcask_consumer.losses import LOSSES
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.reference_sampler import random_positions, sample, to_target

ROWS, HIDDEN, VOCAB = 7, 5, 40
RICHEST = CaptureSpec(tail_logprobs=True)
# Their weights carry no gradient, so finite differences of the value see another function.
DETACHED = {"adaptive_kl", "csd", "ghost_taid", "taid", "todi"}


@pytest.fixture
def target():
    positions = random_positions(ROWS, VOCAB)
    return to_target(sample(positions, np.full(ROWS, 0.37)), positions.next_ids_R, documents=np.arange(ROWS) // 3)


def student(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight


def run(loss, target, *, dtype=torch.float64, block_rows=None):
    hidden, weight = student(dtype)
    value = distillation_loss(hidden, LMHead(weight_VD=weight), target, [(1.0, loss)], block_rows=block_rows)
    return value.terms_KT[0], torch.autograd.grad(value.loss, (hidden, weight))


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    """One test per promise."""

    def test_describes_itself(self, name):
        loss = LOSSES[name]
        assert loss.estimator in ("exact", "unbiased", "consistent", "bound", "biased")
        assert loss.summary.endswith(".")
        assert loss.missing(RICHEST) == []

    def test_chunks_do_not_matter(self, name, target):
        whole, whole_gradients = run(LOSSES[name], target)
        for block_rows in (1, 2, 5):
            value, gradients = run(LOSSES[name], target, block_rows=block_rows)
            torch.testing.assert_close(value, whole, rtol=1e-12, atol=1e-12)
            for got, want in zip(gradients, whole_gradients, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)

    def test_a_common_shift_of_the_logits_changes_nothing(self, name, target):
        terms = [(1.0, LOSSES[name])]

        def chunk(logits):
            return row_block_gradient(logits, target, terms, Scales.of(terms, target), weights_R=None, with_grad=True)

        logits = torch.randn(ROWS, VOCAB, dtype=torch.float64)
        plain, shifted = chunk(logits.clone()), chunk(logits + 7.0)
        torch.testing.assert_close(plain.terms_KR, shifted.terms_KR, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(plain.grad_RV.sum(-1), torch.zeros(ROWS, dtype=torch.float64), rtol=0, atol=1e-12)

    def test_the_gradient_is_that_of_the_value(self, name, target):
        hidden, weight = student()
        _, (gradient, _) = run(LOSSES[name], target)
        step, at = 1e-6, (3, 2)
        values = []
        for sign in (1, -1):
            moved = hidden.detach().clone()
            moved[at] += sign * step
            head = LMHead(weight_VD=weight.detach())
            values.append(float(distillation_loss(moved, head, target, [(1.0, LOSSES[name])]).loss))
        difference = (values[0] - values[1]) / (2 * step)
        if name in DETACHED:
            assert abs(difference - float(gradient[at])) > 1e-6
        else:
            assert difference == pytest.approx(float(gradient[at]), rel=1e-6, abs=1e-8)

    def test_float32_is_close_to_float64(self, name, target):
        exact, exact_gradients = run(LOSSES[name], target)
        value, gradients = run(LOSSES[name], target.to_dtype(torch.float32), dtype=torch.float32)
        torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=2e-5)
        for got, want in zip(gradients, exact_gradients, strict=True):
            assert float((got.double() - want).norm()) <= 1e-5 * float(want.norm())
