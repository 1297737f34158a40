"""Losses that are no plain divergence of t and p, against their definitions in dense float64."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import LossMismatchError, LossParameterError, Objective
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.reference_sampler import DensePositions, every_outcome, random_positions, sample, to_target

ROWS, HIDDEN, VOCAB = 6, 5, 40


def student(rows=ROWS):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()
    return hidden, LMHead(weight_VD=torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64))


def kd(spec, hidden, head, target, **options):
    return distillation_loss(hidden, head, target, Objective.parse(spec).terms(0.0), **options)


def csd(t, p):
    gap = p.log() - t.log()
    weight = p.detach()
    squares = (gap[:, :, None] - gap[:, None, :]) ** 2
    return (weight[:, :, None] * weight[:, None, :] * squares).sum((1, 2)) / 2


def adaptive_kl(t, p, mu=0.5):
    order = t.argsort(-1, descending=True)
    within = t.gather(1, order).cumsum(-1) <= mu
    within[:, 0] = True
    peak = torch.zeros_like(within).scatter(1, order, within)
    gap = (t - p).abs().detach()
    share = (gap * peak).sum(-1) / gap.sum(-1)
    forward = -(t * p.log()).sum(-1)
    return share * forward + (1 - share) * (p * (p / t).log()).sum(-1)


@pytest.mark.parametrize(("spec", "dense"), [("csd", csd), ("adaptive_kl", adaptive_kl)])
def test_whole_vocabulary_equals_dense(spec, dense):
    positions = random_positions(ROWS, VOCAB)
    hidden, head = student()
    target = to_target(sample(positions, np.zeros(ROWS), tau=1e-12, head_max=VOCAB), positions.next_ids_R)
    got = kd(spec, hidden, head, target, block_rows=4).loss
    want = dense(torch.from_numpy(positions.probs_RV), torch.softmax(hidden @ head.weight_VD.T, -1)).sum()
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(loss, hidden)[0] for loss in (got, want))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_csd_on_the_head_is_a_lower_bound_that_grows_with_it():
    positions = random_positions(ROWS, VOCAB)
    hidden, head = student()
    values = []
    for k in (2, 5, 20, VOCAB):
        columns = sample(positions, np.zeros(ROWS), mode="topk", k=k)
        values.append(kd("csd", hidden, head, to_target(columns, positions.next_ids_R)).terms_KT[0].numpy())
    assert all((low < high).all() for low, high in pairwise(values))


def test_csd_does_not_see_a_common_shift():
    """Logits are matched up to a constant: the student that has the teacher's logits plus 3 has no loss."""
    positions = random_positions(1, VOCAB)
    head = LMHead(weight_VD=torch.from_numpy(np.log(positions.probs_RV[0])[:, None] + 3.0))
    target = to_target(sample(positions, np.zeros(1), mode="topk", k=5), positions.next_ids_R)
    ones = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    result = kd("csd", ones, head, target)
    assert float(result.loss.detach()) < 1e-25
    assert float(torch.autograd.grad(result.loss, ones)[0].abs().max()) < 1e-12


def coarse_plus_tail(t, p, heads, weight):
    """KL(head and bucket) + weight · r KL(tail || tail'), per row, by the definition."""
    out = []
    for row, ids in enumerate(heads):
        inside = torch.zeros(VOCAB, dtype=torch.bool)
        inside[ids] = True
        r, s = t[row][~inside].sum(), p[row][~inside].sum()
        coarse = (t[row] * (t[row] / p[row]).log())[inside].sum() + r * (r / s).log()
        a, b = t[row][~inside] / r, p[row][~inside] / s
        out.append(coarse + weight[row] * r * (a * (a / b).log()).sum())
    return torch.stack(out)


@pytest.mark.parametrize("spec", ["forward_kl:tail_weight=0.5", "tail_aware", "tail_aware:beta=0.5"])
def test_weighted_tails_are_unbiased_for_the_weighted_sum(spec):
    """Gradients only: the losses leave out constants of the teacher."""
    positions = random_positions(ROWS, VOCAB, sharpness=1.0)
    hidden, head = student()
    capture: dict[str, Any] = {"tau": 0.1}
    heads = sample(positions, np.zeros(ROWS), **capture)
    documents = np.array([0, 0, 1, 1, 1, 2])
    rows, u, weights = every_outcome(positions, **capture)
    every = DensePositions(positions.probs_RV[rows], positions.next_ids_R[rows])
    mass = np.array(heads.tail_mass)
    mean = np.array([mass[documents == number].mean() for number in documents])
    beta = {"tail_aware": 2.0, "tail_aware:beta=0.5": 0.5}.get(spec)
    weight = np.full(ROWS, 0.5) if beta is None else np.minimum(beta / mean, 10.0)
    total = torch.zeros_like(hidden)
    for row in range(ROWS):  # outcomes of one row repeat it, which must not change its document's mean
        at = np.flatnonzero(rows == row)
        for i in at:
            pick = np.array([i if other == row else np.flatnonzero(rows == other)[0] for other in range(ROWS)])
            one = DensePositions(every.probs_RV[pick], every.next_ids_R[pick])
            target = to_target(sample(one, u[pick], **capture), one.next_ids_R, documents=documents)
            loss = kd(spec, hidden, head, target, block_rows=2).loss
            total[row] += weights[i] * torch.autograd.grad(loss, hidden)[0][row]
    t = torch.from_numpy(positions.probs_RV)

    def dense(weight):
        p = torch.softmax(hidden @ head.weight_VD.T, -1)
        return torch.autograd.grad(coarse_plus_tail(t, p, heads.head_ids, weight).sum(), hidden)[0]

    torch.testing.assert_close(total, dense(weight), rtol=1e-9, atol=1e-11)
    plain = dense(np.ones(ROWS))
    assert float((total - plain).norm() / plain.norm()) > 0.01  # the control: another weight is noticed


def test_tail_aware_needs_documents():
    positions = random_positions(ROWS, VOCAB)
    hidden, head = student()
    target = to_target(sample(positions, np.full(ROWS, 0.4)), positions.next_ids_R)
    with pytest.raises(LookupError, match="documents_R"):
        kd("tail_aware", hidden, head, target)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("whole", [True, False])
def test_softened_forward_kl_is_unbiased(temperature, whole):
    """T^2 KL(t_T || p_T), both softened, up to the teacher's entropy: beside cross-entropy at T = 1."""
    positions = random_positions(ROWS, VOCAB, sharpness=1.5)
    hidden, head = student()
    spec = f"0.7*forward_kl:temperature={temperature} + 0.3*cross_entropy"
    capture: dict[str, Any] = {"tau": 1e-12, "head_max": VOCAB} if whole else {"tau": 0.1}
    rows, u, weights = every_outcome(positions, **capture)
    every = DensePositions(positions.probs_RV[rows], positions.next_ids_R[rows])
    soft = every.probs_RV ** (1 / temperature)
    target = to_target(sample(every, u, **capture), every.next_ids_R, log_z_R=np.log(soft.sum(1)))
    got = kd(spec, hidden[rows], head, target, weights_T=torch.from_numpy(weights), block_rows=50).loss
    z = hidden @ head.weight_VD.T
    t_T = torch.from_numpy(positions.probs_RV ** (1 / temperature))
    t_T = t_T / t_T.sum(-1, keepdim=True)
    soft_ce = -(t_T * torch.log_softmax(z / temperature, -1)).sum() * temperature**2
    ce = torch.nn.functional.cross_entropy(z, torch.from_numpy(positions.next_ids_R), reduction="sum")
    want = 0.7 * soft_ce + 0.3 * ce
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(x, hidden)[0] for x in (got, want)), rtol=1e-9, atol=1e-10)


def test_a_temperature_needs_its_log_z():
    objective = Objective.parse("forward_kl:temperature=2")
    with pytest.raises(LossMismatchError, match=r"tail_logprobs=true.*temperatures=\[2\]"):
        objective.require(CaptureSpec(temperatures=(4.0,)))
    objective.require(CaptureSpec(temperatures=(4.0, 2.0), tail_logprobs=True))
    assert objective.temperature == 2.0
    with pytest.raises(LossParameterError, match="one temperature"):
        _ = Objective.parse("forward_kl:temperature=2 + forward_kl:temperature=4").temperature
