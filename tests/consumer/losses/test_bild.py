"""BiLD against its definition in dense float64: whole vocabularies, top-k records, small heads, and controls."""

import numpy as np
import pytest
import torch

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import LossMismatchError, LossParameterError, Objective
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.reference_sampler import random_positions, sample, to_target

ROWS, HIDDEN, VOCAB = 6, 5, 40


def student(rows=ROWS, vocab=VOCAB):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()
    return hidden, torch.randn(vocab, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()


def run(spec, target, hidden, weight, **options):
    terms = Objective.parse(spec).terms(0.0)
    result = distillation_loss(hidden, LMHead(weight_VD=weight), target, terms, **options)
    return result.terms_KT[0], torch.autograd.grad(result.loss, (hidden, weight))


def led(leader, teacher, student, k, soften):
    """One direction for one row, by the definition; k of the leader's largest, pair by pair."""
    order = leader.detach().argsort(descending=True)[:k]
    teacher, student = teacher[order] / soften, student[order] / soften
    pairs = [(i, j) for i in range(len(order)) for j in range(i + 1, len(order))]
    if not pairs:
        return student.sum() * 0
    gaps = (torch.stack([values[i] - values[j] for i, j in pairs]) for values in (teacher, student))
    log_t, log_p = (torch.log_softmax(gap, 0) for gap in gaps)
    return (log_t.exp() * (log_t - log_p)).sum()


def dense(positions, hidden, weight, *, k=8, soften=3.0, which=("teacher", "student"), heads=None):
    """Every row over the whole vocabulary, or within `heads`."""
    z, x = hidden @ weight.T, torch.from_numpy(np.log(positions.probs_RV)) - 5.0
    rows = []
    for row in range(len(z)):
        inside = slice(None) if heads is None else torch.from_numpy(np.sort(heads[row]))
        teacher, own = x[row][inside], z[row][inside]
        leaders = {"teacher": teacher, "student": own}
        rows.append(torch.stack([led(leaders[name], teacher, own, k, soften) for name in which]).sum())
    values = torch.stack(rows)
    return values.detach(), torch.autograd.grad(values.sum(), (hidden, weight))


def assert_same(got, want):
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=1e-10)
    for mine, theirs in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("bild", {}),
        ("bild:k=3,soften=1", {"k": 3, "soften": 1.0}),
        ("bild:led=teacher", {"which": ("teacher",)}),
        ("bild:led=student,k=12", {"which": ("student",), "k": 12}),
    ],
)
def test_whole_vocabulary_equals_dense(spec, options):
    positions = random_positions(ROWS, VOCAB)
    target = to_target(sample(positions, np.zeros(ROWS), tau=1e-12, head_max=VOCAB), positions.next_ids_R)
    assert_same(run(spec, target, *student(), block_rows=4), dense(positions, *student(), **options))


def test_negative_control_other_parameters_and_the_wrong_leader_are_noticed():
    positions = random_positions(ROWS, VOCAB)
    target = to_target(sample(positions, np.zeros(ROWS), tau=1e-12, head_max=VOCAB), positions.next_ids_R)
    want, _ = dense(positions, *student())
    for spec in ("bild:k=7", "bild:soften=2.5", "bild:led=teacher", "bild:led=student"):
        assert float((run(spec, target, *student())[0] - want).abs().max()) > 1e-2


def test_top_k_records_give_the_teachers_lead_exactly():
    """Also where the next token is appended to the head, and with a head larger than k."""
    positions = random_positions(ROWS, VOCAB)
    for kept in (8, 11):
        target = to_target(sample(positions, np.zeros(ROWS), mode="topk", k=kept), positions.next_ids_R)
        assert_same(run("bild:led=teacher", target, *student()), dense(positions, *student(), which=("teacher",)))


def test_the_students_lead_is_exact_where_its_tokens_are_in_the_head_and_restricted_to_it_elsewhere():
    positions = random_positions(ROWS, VOCAB)
    columns = sample(positions, np.zeros(ROWS), mode="topk", k=20)
    target = to_target(columns, positions.next_ids_R)
    got = run("bild:led=student", target, *student())
    assert_same(got, dense(positions, *student(), which=("student",), heads=columns.head_ids))
    whole, _ = dense(positions, *student(), which=("student",))
    assert float((got[0] - whole).abs().min()) > 1e-3  # the control: this student's 8 lie outside in every row
    hidden = torch.eye(ROWS, dtype=torch.float64, requires_grad=True)
    near = torch.from_numpy(np.log(positions.probs_RV).T * 1.3).requires_grad_()  # the same order, other distances
    assert_same(run("bild:led=student", target, hidden, near), dense(positions, hidden, near, which=("student",)))


@pytest.mark.parametrize("capture", [{}, {"tau": 0.3}, {"head_max": 5}], ids=str)
def test_small_heads_are_taken_whole(capture):
    positions = random_positions(40, VOCAB, sharpness=3.0)
    columns = sample(positions, np.full(40, 0.37), **capture)
    sizes = np.array([len(head) for head in columns.head_ids])
    target = to_target(columns, positions.next_ids_R)
    value, gradients = got = run("bild", target, *student(rows=40), block_rows=7)
    assert_same(got, dense(positions, *student(rows=40), heads=columns.head_ids))
    assert (sizes < 3).any()
    assert (value[sizes < 3] == 0).all()
    assert (gradients[0][sizes < 3] == 0).all()
    assert (value[sizes >= 3] > 0).all()


def test_gradcheck():
    positions = random_positions(3, 12)
    columns = sample(positions, np.zeros(3), mode="topk", k=5)
    target = to_target(columns, positions.next_ids_R)
    hidden, weight = student(rows=3, vocab=12)

    class Repeatable(torch.autograd.Function):
        """The fused loss scales its gradients in place, once; gradcheck asks for them again."""

        @staticmethod
        def forward(ctx, hidden, weight):
            leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
            with torch.enable_grad():
                value, gradients = run("bild:k=4", target, *leaves)
            ctx.save_for_backward(*gradients)
            return value.sum()

        @staticmethod
        def backward(ctx, grad):
            return tuple(grad * g for g in ctx.saved_tensors)

    assert torch.autograd.gradcheck(Repeatable.apply, (hidden, weight))


def test_the_optimum_has_the_teachers_ratios_and_any_mass_outside():
    positions = random_positions(1, VOCAB)
    columns = sample(positions, np.zeros(1), mode="topk", k=8)
    target = to_target(columns, positions.next_ids_R)
    ones = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    logits = torch.from_numpy(np.log(positions.probs_RV.T)).clone()
    outside = np.setdiff1d(np.arange(VOCAB), columns.head_ids[0])
    logits[outside] += 5.0
    value, gradients = run("bild:led=teacher", target, ones, logits.requires_grad_())
    assert float(value) < 1e-25
    assert float(gradients[1].abs().max()) < 1e-12


def test_captures_that_cannot_hold_k_tokens_are_refused():
    for capture, message in (
        (CaptureSpec(mode="topk", k=5), r"heads of 8 entries \(capture with k=8\)"),
        (CaptureSpec(head_max=4), r"capture with head_max=8"),
        (CaptureSpec(mode="sampled"), "head of likely tokens"),
    ):
        with pytest.raises(LossMismatchError, match=message):
            Objective.parse("bild").require(capture)
    Objective.parse("bild:k=5").require(CaptureSpec(mode="topk", k=5))
    Objective.parse("bild").require(CaptureSpec())
    with pytest.raises(LossParameterError, match="between 3"):
        Objective.parse("bild:k=2")
