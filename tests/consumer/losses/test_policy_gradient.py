"""The policy gradient against brute force: every text over three tokens, in float64.

Shape legend: V vocabulary, L longest text, Y all texts.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from logitcask_consumer.data.sampled_dataset import policy_columns, policy_values
from logitcask_consumer.head.row_blocks import before_weights
from logitcask_consumer.losses import LossMismatchError, LossParameterError, Objective, get_loss
from logitcask_consumer.losses.formulas.f_divergence import FDivergence
from logitcask_consumer.losses.student_rows import Leaves, StudentRows
from logitcask_schemas.errors import DocumentMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Extent
from tests.support.consumer.cask_builder import dense_positions, record, tiny_model
from tests.support.consumer.reference_sampler import DensePositions, sample, to_target

V, L, END = 3, 3, 0
TEXTS = [
    text
    for length in range(1, L + 1)
    for text in itertools.product(range(V), repeat=length)
    if END not in text[:-1] and (text[-1] == END or length == L)
]
"""Every text: it ends with END, or at L tokens."""
PREFIXES = sorted({text[:at] for text in TEXTS for at in range(len(text))})


def table(seed):
    """Logits behind every prefix."""
    generator = torch.Generator().manual_seed(seed)
    return {
        prefix: torch.randn(V, generator=generator, dtype=torch.float64).mul_(1.5).requires_grad_()
        for prefix in PREFIXES
    }


@pytest.fixture
def student():
    return table(0)


@pytest.fixture
def teacher():
    return {prefix: logits.detach() for prefix, logits in table(1).items()}


def logprob(model, text):
    """log-probability of each token of a text."""
    return torch.stack([model[text[:at]].log_softmax(-1)[token] for at, token in enumerate(text)])


def exact_gradient(student, teacher):
    """Of KL(p || t) over whole texts, by enumeration."""
    total = sum(
        logprob(student, text).sum().exp() * (logprob(student, text).sum() - logprob(teacher, text).sum())
        for text in TEXTS
    )
    return torch.autograd.grad(total, list(student.values()), allow_unused=True)


def columns_of(log_q, log_t, teacher_share=0.0):
    """As the dataset makes them."""
    values = policy_values(log_t.detach().numpy(), log_q.detach().numpy(), teacher_share=teacher_share)
    return torch.from_numpy(values)


def loss_of(spec, student, teacher, text, behaviour, teacher_share=0.0):
    """Our formulas on one text, summed over its tokens."""
    probs_RV = torch.stack([teacher[text[:at]].softmax(-1) for at in range(len(text))]).numpy()
    dense = DensePositions(probs_RV, np.array(text))
    target = to_target(sample(dense, np.zeros(len(text)), mode="topk", k=V), dense.next_ids_R, sampled_tail=False)
    logits_RV = torch.stack([student[text[:at]] for at in range(len(text))])
    rows = torch.arange(len(text))
    leaves = Leaves(
        head_logits_H=logits_RV[target.head_rows_H, target.head_ids_H],
        tail_logits_N=logits_RV.new_zeros(0),
        next_logits_R=logits_RV[rows, target.next_ids_R],
        rest_lse_R=logits_RV.logsumexp(-1),
    )
    policy = columns_of(logprob(behaviour, text), logprob(teacher, text), teacher_share)
    target = type(target)(**{name: getattr(target, name) for name in target.__slots__} | {"policy_R4": policy})
    own = StudentRows(leaves, target, rest_is_tail=False)
    total = logits_RV.new_zeros(())
    for weight, loss in Objective.parse(spec).terms(0.0):
        if loss.name == "reverse_kl":  # its bucket is empty: the head holds the vocabulary
            assert isinstance(loss, FDivergence)
            value = target.head_sum(loss.times_t(target.head_logprobs_H, own.head_logprobs_H))
        else:
            value = loss.per_row(own, target, None)
        if (before := before_weights(loss, target)) is not None:
            value = value * before
        total = total + weight * value.sum()
    return total


def expected_gradient(spec, student, teacher, behaviour):
    """The mean over texts that the behaviour policy samples."""
    total = sum(
        logprob(behaviour, text).sum().exp().detach() * loss_of(spec, student, teacher, text, behaviour)
        for text in TEXTS
    )
    return torch.autograd.grad(total, list(student.values()), allow_unused=True)


def mixed_gradient(spec, student, teacher, *, share, assumed):
    """The mean over texts that the teacher writes with probability `share`, weighted as if it were `assumed`."""
    total = sum(
        (share * logprob(teacher, text).sum().exp() + (1 - share) * logprob(student, text).sum().exp()).detach()
        * loss_of(spec, student, teacher, text, student, assumed)
        for text in TEXTS
    )
    return torch.autograd.grad(total, list(student.values()), allow_unused=True)


def distance(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_all_texts_have_probability_one(student):
    assert float(sum(logprob(student, text).sum().exp().detach() for text in TEXTS)) == pytest.approx(1.0, abs=1e-12)


def test_with_the_single_step_part_it_is_the_gradient_of_the_whole_divergence(student, teacher):
    exact = exact_gradient(student, teacher)
    ours = expected_gradient("reverse_kl + policy_rkl:length_norm=no", student, teacher, student)
    assert distance(ours, exact) < 1e-12
    assert max(float(gradient.abs().max()) for gradient in exact) > 0.05


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
class TestTextsOfTheTeacher:
    """It writes whole texts in the student's place."""

    SPEC = "reverse_kl + policy_rkl:length_norm=no"

    def test_the_gradient_stays_that_of_the_students_texts(self, student, teacher, share):
        ours = mixed_gradient(self.SPEC, student, teacher, share=share, assumed=share)
        assert distance(ours, exact_gradient(student, teacher)) < 1e-12

    def test_with_length_norm_too(self, student, teacher, share):
        ours = mixed_gradient("reverse_kl + policy_rkl", student, teacher, share=share, assumed=share)
        want = expected_gradient("reverse_kl + policy_rkl", student, teacher, student)
        assert distance(ours, want) < 1e-12

    def test_negative_control_weights_as_if_all_were_the_students_are_biased(self, student, teacher, share):
        ours = mixed_gradient(self.SPEC, student, teacher, share=share, assumed=0.0)
        assert distance(ours, exact_gradient(student, teacher)) > 1e-2

    @pytest.mark.parametrize("part", ["reverse_kl", "policy_rkl:length_norm=no"])
    def test_negative_control_both_parts_need_them(self, student, teacher, share, part):
        """Each alone is biased without its weights."""
        ours = mixed_gradient(part, student, teacher, share=share, assumed=0.0)
        assert distance(ours, expected_gradient(part, student, teacher, student)) > 1e-3

    def test_weights_are_bounded(self, share):
        values = policy_values(np.array([-1e3, -800.0]), np.array([-1.0, -0.5]), teacher_share=share)
        np.testing.assert_allclose(values[:, 3], [1.0, 1.0 / (1.0 - share)], rtol=1e-12)
        values = policy_values(np.array([-0.1, -0.1]), np.array([-2e3, -0.5]), teacher_share=share)
        np.testing.assert_array_equal(values[:, 3], [1.0, 0.0])
        assert np.isfinite(values).all()


@pytest.mark.parametrize(
    "spec",
    ["reverse_kl", "policy_rkl:length_norm=no", "reverse_kl + policy_rkl", "reverse_kl + 2*policy_rkl:length_norm=no"],
)
def test_negative_controls_are_not(student, teacher, spec):
    assert distance(expected_gradient(spec, student, teacher, student), exact_gradient(student, teacher)) > 1e-3


def test_with_length_norm_it_is_the_papers_formula(student, teacher):
    """- sum_i (1 / (n - i)) sum_{j > i} log(t / q) grad log p(y_i), in expectation."""
    surrogate = torch.zeros((), dtype=torch.float64)
    for text in TEXTS:
        log_p, log_t = logprob(student, text), logprob(teacher, text)
        for at in range(len(text) - 1):
            later = (log_t - log_p)[at + 1 :].detach()
            surrogate = surrogate - log_p.sum().exp().detach() * later.mean() * log_p[at]
    expected = torch.autograd.grad(surrogate, list(student.values()), allow_unused=True)
    for ours, want in zip(expected_gradient("policy_rkl", student, teacher, student), expected, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if want is None else want, atol=1e-12, rtol=1e-12)


def test_importance_weights_are_exact_where_one_token_moved(teacher, student):
    """Texts of an older student: weights correct for the token itself, so for a last prefix they are all it takes."""
    old = {prefix: logits.detach().clone() for prefix, logits in student.items()}
    with torch.no_grad():
        student[()] += torch.tensor([0.03, -0.02, 0.01])
    # The first token's probability moved, those behind it did not: the rewards behind it have the same expectation.
    ours = expected_gradient("policy_rkl:length_norm=no", student, teacher, old)[PREFIXES.index(())]
    fresh = expected_gradient("policy_rkl:length_norm=no", student, teacher, student)[PREFIXES.index(())]
    torch.testing.assert_close(ours, fresh, atol=1e-12, rtol=1e-12)


def test_beyond_the_clip_there_is_no_gradient(student, teacher):
    """Where a token has become likelier by more than the clip, and more of it would be better."""
    old = {prefix: logits.detach().clone() for prefix, logits in student.items()}
    with torch.no_grad():
        student[()] += torch.tensor([0.0, 5.0, 0.0])
    text = (1, 2, END)
    advantage = (logprob(teacher, text) - logprob(old, text))[1:].sum()
    loss = loss_of("policy_rkl:length_norm=no", student, teacher, text, old)
    gradient = torch.autograd.grad(loss, student[()])[0]
    assert (float(gradient.abs().max()) == 0.0) == (float(advantage) > 0)


def test_columns_of_a_document():
    ids = np.array([5, 9, 3, 8, 2], dtype=np.uint16)
    teacher = tiny_model()
    dense = dense_positions(teacher, ids)
    whole = record(dense, ids, CaptureSpec(logprob_codec="f32"))
    mask = np.array([False, False, True, True])
    tail = type(whole)(token_ids_L=ids, records=whole.records.select(mask), extent=Extent.of_mask(mask))
    log_t = np.log(dense.probs_RV[[2, 3], ids[3:]])
    log_q = np.array([-1.0, -2.5], dtype=np.float32)
    columns = policy_columns(tail, log_q)
    np.testing.assert_allclose(columns, [[-1.0, log_t[1] + 2.5, 1.0, 1.0], [-2.5, 0.0, 0.0, 1.0]], rtol=1e-6, atol=1e-7)
    with pytest.raises(DocumentMismatchError, match="3 tokens of a document were sampled, 2 of its positions"):
        policy_columns(tail, np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize("spec", ["policy_rkl:clip=0", "policy_rkl:clip=1", "policy_rkl:length_norm=maybe"])
def test_parameters_out_of_range_are_refused(spec):
    with pytest.raises(LossParameterError):
        get_loss(spec)


def test_records_that_no_student_sampled_are_refused(student, teacher):
    dense = DensePositions(np.full((1, V), 1 / V), np.array([1]))
    target = to_target(sample(dense, np.zeros(1), mode="topk", k=V), dense.next_ids_R, sampled_tail=False)
    bare = type(target)(**{name: getattr(target, name) for name in target.__slots__} | {"policy_R4": None})
    unread: Any = None
    with pytest.raises(LossMismatchError, match="logitcask rounds --recipe minillm"):
        get_loss("policy_rkl").per_row(unread, bare, None)
