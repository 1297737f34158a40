"""The loss within a compiled training step: the same loss and gradients, one graph for the body, no new compilation."""

import numpy as np
import pytest
import torch
from torch import nn

from logitcask_consumer.head import LMHead, LogitTransform, distillation_loss
from logitcask_consumer.losses import Objective
from tests.support.consumer.reference_sampler import random_positions, sample, to_target

ROWS, VOCAB, HIDDEN = 12, 40, 8

# Torch looks at .grad of the hidden states where it leaves its graph for the loss.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


class Student(nn.Module):
    """A body, a head, and the loss in one forward, as the trainer has them."""

    def __init__(self, transform):
        super().__init__()
        self.embedding, self.body = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCAB)
        self.transform = transform

    def forward(self, ids_T, target, terms):
        hidden_TD = torch.tanh(self.body(self.embedding(ids_T)))
        head = LMHead(weight_VD=self.head.weight, bias_V=self.head.bias, transform=self.transform)
        return distillation_loss(hidden_TD, head, target, terms, block_rows=5).loss


def batches(count):
    for seed in range(count):
        positions = random_positions(ROWS, VOCAB, seed=seed)
        columns = sample(positions, np.full(ROWS, 0.37))
        yield (
            torch.from_numpy(positions.next_ids_R),
            to_target(columns, positions.next_ids_R, dtype=torch.float32),
        )


def train(spec, transform, *, compiled):
    """Four steps of SGD; losses and the parameters that they lead to."""
    torch.manual_seed(0)
    student = Student(transform)
    step = torch.compile(student, backend="aot_eager") if compiled else student
    optimizer, losses = torch.optim.SGD(student.parameters(), lr=0.1), []
    for ids_T, target in batches(4):
        optimizer.zero_grad()
        loss = step(ids_T, target, Objective.parse(spec).terms(0.0))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, [parameter.detach() for parameter in student.parameters()]


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(scale=2.0, softcap=4.0)], ids=str)
@pytest.mark.parametrize("spec", ["forward_kl", "0.5*js:tail=ghost + 0.3*taid + 0.2*cross_entropy"])
def test_a_compiled_step_is_the_same(spec, transform):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses, parameters = train(spec, transform, compiled=True)
    stats = dict(torch._dynamo.utils.counters["stats"])
    plain_losses, plain_parameters = train(spec, transform, compiled=False)
    assert losses == pytest.approx(plain_losses, rel=1e-6)
    for got, want in zip(parameters, plain_parameters, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    assert plain_losses[-1] != plain_losses[0]
    assert stats["unique_graphs"] == 1, "the body alone is compiled, once for all batches"
