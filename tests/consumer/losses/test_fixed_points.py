"""Where training leads: a bigram softmax student, trained to convergence on every kind of record of many positions.

Contexts are rows; the student has a free table of logits, so that it can be any distribution. Positions of a context
differ in the sampler's uniform and in the next token y; both are averaged over exactly, by weight.
"""

import numpy as np
import pytest
import torch

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import Objective
from tests.support.consumer.reference_sampler import DensePositions, every_outcome, random_positions, sample, to_target

CONTEXTS, VOCAB, K = 3, 12, 4


@pytest.fixture(scope="module")
def teacher():
    return random_positions(CONTEXTS, VOCAB, sharpness=1.0, seed=5)


def occurrences(teacher, *, y):
    """Positions with their context and weight: y the likeliest token, or every token with its probability."""
    if y == "likeliest":
        return DensePositions(teacher.probs_RV, teacher.probs_RV.argmax(1)), np.arange(CONTEXTS), np.ones(CONTEXTS)
    contexts = np.repeat(np.arange(CONTEXTS), VOCAB)
    every = DensePositions(teacher.probs_RV[contexts], np.tile(np.arange(VOCAB), CONTEXTS))
    return every, contexts, teacher.probs_RV.reshape(-1)


def train(loss, target, contexts, weights):
    """The student's distributions after training to convergence from a uniform start, [contexts, vocabulary]."""
    count = int(contexts.max()) + 1
    table = torch.zeros(VOCAB, count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [table], lr=1, max_iter=600, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    hidden = torch.eye(count, dtype=torch.float64)[torch.from_numpy(contexts)]
    terms, weights_T = Objective.parse(loss).terms(0.0), torch.from_numpy(weights)

    def closure():
        optimizer.zero_grad()
        value = distillation_loss(hidden, LMHead(weight_VD=table), target, terms, weights_T=weights_T).loss
        value.backward()
        return value

    optimizer.step(closure)
    return torch.softmax(table.detach().T, -1).numpy()


def converged(loss, teacher, *, y="drawn", **capture):
    positions, contexts, by_y = occurrences(teacher, y=y)
    rows, u, by_u = every_outcome(positions, **capture)
    every = DensePositions(positions.probs_RV[rows], positions.next_ids_R[rows])
    target = to_target(sample(every, u, **capture), every.next_ids_R, sampled_tail=capture.get("mode") != "topk")
    return train(loss, target, contexts[rows], by_u * by_y[rows])


def head_of(teacher):
    """Whether a token is one of the teacher's K likeliest, [contexts, vocabulary]."""
    return (-teacher.probs_RV).argsort(1).argsort(1) < K


@pytest.mark.parametrize("capture", [{"tau": 0.15}, {"tau": 0.15, "tail_max": 1}, {"mode": "sampled"}], ids=str)
@pytest.mark.parametrize("loss", ["forward_kl", "forward_kl:tail_weight=0.5", "js", "skew_kl", "cross_entropy"])
def test_unbiased_records_lead_to_the_teacher(loss, capture, teacher):
    np.testing.assert_allclose(converged(loss, teacher, **capture), teacher.probs_RV, atol=1e-5)


def test_negative_control_renormalised_top_k_leads_to_the_rescaled_head(teacher):
    """To t / a on the head and nothing elsewhere: far from the teacher, and exactly where the formula says."""
    p, head = converged("topk_renorm", teacher, y="likeliest", mode="topk", k=K), head_of(teacher)
    expected = np.where(head, teacher.probs_RV, 0.0)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(p, expected, atol=1e-5)
    assert np.abs(p - teacher.probs_RV).max(1).min() > 0.05


def test_ghost_leads_to_the_right_head_and_a_wrong_tail(teacher):
    """The tail has the teacher's mass and keeps the student's shape, which was uniform at the start."""
    p, head = converged("ghost_kl", teacher, y="likeliest", mode="topk", k=K), head_of(teacher)
    np.testing.assert_allclose(p[head], teacher.probs_RV[head], atol=1e-6)
    mass = (teacher.probs_RV * ~head).sum(1, keepdims=True)
    np.testing.assert_allclose(p[~head], np.broadcast_to(mass / (VOCAB - K), p.shape)[~head], atol=1e-6)
    assert np.abs(p - teacher.probs_RV)[~head].max() > 0.02  # the control: this tail is not the teacher's


def test_next_tokens_in_the_head_teach_the_ghost_the_tail(teacher):
    """Every record holds y exactly; over many positions y is every token, and each of the coarse KLs is 0 at t only."""
    np.testing.assert_allclose(converged("ghost_kl", teacher, mode="topk", k=K), teacher.probs_RV, atol=1e-5)


def test_negative_control_they_do_not_mend_renormalisation(teacher):
    """With y in its head it leads to t_j E[1 / (mass of the head) where j is in it], still far from t."""
    p, t = converged("topk_renorm", teacher, mode="topk", k=K), teacher.probs_RV
    head = head_of(teacher)
    a = (t * head).sum(1, keepdims=True)
    on_head = t * (1.0 + (t * ~head / (a + t)).sum(1, keepdims=True))
    expected = np.where(head, on_head, t * t / (a + t))
    np.testing.assert_allclose(p, expected, atol=1e-5)
    assert np.abs(p - t).max(1).min() > 0.02


@pytest.mark.parametrize("loss", ["forward_kl", "ghost_kl"])
def test_negative_control_a_shift_by_one_position_is_seen_in_training(loss):
    """Records of a chain of tokens, each used at the position after its own, lead far from the teacher."""
    rng = np.random.default_rng(0)
    step = random_positions(VOCAB, VOCAB, sharpness=1.5, seed=3).probs_RV
    tokens = [0]
    for _ in range(600):
        tokens.append(int(rng.choice(VOCAB, p=step[tokens[-1]])))
    contexts = np.array(tokens[:-1])
    positions = DensePositions(step[contexts], np.array(tokens[1:]))
    target = to_target(sample(positions, rng.random(600), tau=0.15), positions.next_ids_R)
    found = {}
    for name, shift in (("right", 0), ("shifted", 1)):
        p = train(loss, target, np.roll(contexts, -shift), np.ones(600))[contexts]
        found[name] = float((positions.probs_RV * np.log(positions.probs_RV / p)).sum(1).mean())
    assert found["right"] < 0.1
    assert found["shifted"] > 0.5
