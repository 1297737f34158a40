"""Spans of rows by device: an accelerator takes fewer and longer ones, which changes nothing but the order of sums."""

import numpy as np
import pytest
import torch

from logitcask_consumer.head import LMHead, distillation_loss, fused_head
from logitcask_consumer.head.dense_target import DenseTarget
from logitcask_consumer.losses import Objective
from tests.support.consumer.reference_sampler import random_positions, sample, to_target

ROWS, HIDDEN, VOCAB = 23, 5, 40


def head_of(vocab, device, width=1):
    return LMHead(weight_VD=torch.empty((vocab, width), device=device))


@pytest.mark.parametrize(
    ("vocab", "cpu", "accelerator"),
    [(49_152, 341, 6826), (128_256, 256, 2616), (151_936, 256, 2208), (262_144, 256, 1280)],
)
def test_rows_of_a_span(vocab, cpu, accelerator):
    # "meta" stands for every device that is no CPU.
    assert fused_head.default_rows(head_of(vocab, "cpu")) == cpu
    assert fused_head.default_rows(head_of(vocab, "meta")) == accelerator


def test_a_long_batch_moves_the_gradient_of_a_wide_head_a_few_times_on_an_accelerator():
    rows = fused_head.default_rows(head_of(151_936, "meta"))
    assert -(-8192 // rows) == 4


def test_a_dense_target_has_rows_in_proportion():
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = [
        DenseTarget.of(
            lambda at: nothing, head_of(151_936, device), next_ids_R=nothing, documents_R=nothing, temperature=None
        ).block_rows
        for device in ("cpu", "meta")
    ]
    assert rows == [5, 110]


@pytest.mark.parametrize("spec", ["forward_kl", "0.5*reverse_kl + js", "csd", "cross_entropy"])
def test_longer_spans_give_the_same_loss_and_gradients(monkeypatch, spec):
    generator = torch.Generator().manual_seed(1)
    positions = random_positions(ROWS, VOCAB)
    target = to_target(sample(positions, np.full(ROWS, 0.3), tau=0.05, head_max=9), positions.next_ids_R)
    found, spans = [], []
    for rows in (3, 23):  # what the CPU's budget and the accelerator's come to, made small
        monkeypatch.setattr(fused_head, "LEAST_ROWS", 1)
        monkeypatch.setattr(fused_head, "CHUNK_BYTES", 4 * VOCAB * rows)
        hidden = torch.randn(ROWS, HIDDEN, generator=generator.manual_seed(2), dtype=torch.float64).requires_grad_()
        weight = torch.randn(VOCAB, HIDDEN, generator=generator.manual_seed(3), dtype=torch.float64).requires_grad_()
        result = distillation_loss(hidden, LMHead(weight_VD=weight), target, Objective.parse(spec).terms(0.0))
        result.loss.backward()
        spans.append(-(-ROWS // fused_head.default_rows(LMHead(weight_VD=weight))))
        found.append((result.loss, result.terms_KT, result.ce_T, hidden.grad, weight.grad))
    assert spans == [8, 1]
    for short, long in zip(*found, strict=True):
        torch.testing.assert_close(short, long, rtol=1e-11, atol=1e-13)
