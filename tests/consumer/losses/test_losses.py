"""Every loss against dense float64: values, gradients, unbiasedness, and controls that must fail."""

import numpy as np
import pytest
import torch

from logitcask_consumer.head import LMHead, LogitTransform, ShapeError, distillation_loss
from logitcask_consumer.head.row_blocks import Scales, row_block_gradient
from logitcask_consumer.head.softmax import log_softmax_
from logitcask_consumer.losses import LossParameterError, Objective
from tests.support.consumer.reference_sampler import dense_kl, every_outcome, random_positions, sample, to_target

ROWS, HIDDEN, VOCAB = 7, 5, 60
TRANSFORMS = [
    LogitTransform(),
    LogitTransform(softcap=3.0),
    LogitTransform(scale=0.5),
    LogitTransform(scale=2, softcap=4),
]


def mix(name, ce_weight=0.0):
    return Objective.parse(name).with_cross_entropy(ce_weight).terms(0.0)


def student(*, bias=False, transform=None, dtype=torch.float64, rows=ROWS, vocab=VOCAB):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocab, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias_V = torch.randn(vocab, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    return hidden, LMHead(weight_VD=weight, bias_V=bias_V, transform=transform or LogitTransform())


def dense_logits(hidden, head):
    z = hidden @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V)
    z = z * head.transform.scale
    return z if head.transform.softcap is None else head.transform.softcap * torch.tanh(z / head.transform.softcap)


def gradients(loss, hidden, head):
    inputs = [hidden, head.weight_VD] + ([] if head.bias_V is None else [head.bias_V])
    return torch.autograd.grad(loss, inputs)


def sparse_gradients(dense, u, name="forward_kl", *, block_rows=None, **spec):
    hidden, head = student()
    target = to_target(
        sample(dense, np.broadcast_to(u, ROWS), **spec), dense.next_ids_R, sampled_tail=spec.get("mode") != "topk"
    )
    result = distillation_loss(hidden, head, target, mix(name), block_rows=block_rows)
    value = result.loss.detach() - dense.entropy_R.sum()
    return value, gradients(result.loss, hidden, head)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("name", ["forward_kl", "ghost_kl", "topk_renorm"])
@pytest.mark.parametrize("bias", [False, True])
def test_whole_vocabulary_equals_dense(name, transform, bias):
    dense = random_positions(ROWS, VOCAB)
    hidden, head = student(bias=bias, transform=transform)
    columns = sample(dense, np.zeros(ROWS), mode="threshold", tau=1e-12, head_max=VOCAB)
    result = distillation_loss(hidden, head, to_target(columns, dense.next_ids_R), mix(name), block_rows=3)
    expected = dense_kl(dense_logits(hidden, head), dense.probs_RV)
    assert abs(float((result.loss - dense.entropy_R.sum() - expected).detach())) < 1e-10
    for got, want in zip(gradients(result.loss, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("forward_kl", {}),
        ("forward_kl", {"mode": "sampled"}),
        ("ghost_kl", {}),
        ("ghost_kl", {"mode": "topk"}),
        ("topk_renorm", {"mode": "topk"}),
        ("forward_kl:tail_weight=0.5", {}),
        ("cross_entropy", {}),
    ],
)
@pytest.mark.parametrize("transform", TRANSFORMS[:2], ids=str)
def test_gradcheck(name, spec, ce_weight, transform):
    ce_weight = 0.0 if name == "cross_entropy" else ce_weight
    dense = random_positions(4, 16)
    hidden, head = student(bias=True, transform=transform, rows=4, vocab=16)
    target = to_target(sample(dense, np.full(4, 0.37), **spec), dense.next_ids_R, sampled_tail="topk" not in str(spec))

    def loss_of(hidden, weight, bias):
        part = LMHead(weight_VD=weight, bias_V=bias, transform=head.transform)
        return distillation_loss(hidden, part, target, mix(name, ce_weight), block_rows=3).loss

    class Repeatable(torch.autograd.Function):
        """gradcheck runs backward several times on one graph; the loss allows one (it scales gradients in place)."""

        @staticmethod
        def forward(ctx, *inputs):
            leaves = [x.detach().requires_grad_() for x in inputs]
            with torch.enable_grad():
                loss = loss_of(*leaves)
                ctx.save_for_backward(*torch.autograd.grad(loss, leaves))
            return loss.detach()

        @staticmethod
        def backward(ctx, grad):
            return tuple(grad * g for g in ctx.saved_tensors)

    assert torch.autograd.gradcheck(Repeatable.apply, (hidden, head.weight_VD, head.bias_V))


@pytest.mark.parametrize("name", ["forward_kl", "ghost_kl", "topk_renorm", "cross_entropy"])
def test_value_is_the_formula(name):
    dense = random_positions(ROWS, VOCAB)
    hidden, head = student()
    columns = sample(dense, np.full(ROWS, 0.5))
    result = distillation_loss(
        hidden, head, to_target(columns, dense.next_ids_R), mix(name, 0.25 if name != "cross_entropy" else 0.0)
    )
    logp = torch.log_softmax(dense_logits(hidden, head), -1).detach().numpy()
    for row in range(ROWS):
        ids, probs, draws = columns.head_ids[row], columns.head_probs[row], columns.tail_ids[row]
        r, lp = columns.tail_mass[row], logp[row]
        expected = {
            "forward_kl": -(probs * lp[ids]).sum() - (r / max(len(draws), 1)) * lp[draws].sum(),
            "ghost_kl": -(probs * lp[ids]).sum() - r * np.log1p(-np.exp(lp[ids]).sum()),
            "topk_renorm": -(probs / probs.sum() * lp[ids]).sum(),
            "cross_entropy": -lp[dense.next_ids_R[row]],
        }[name]
        assert abs(float(result.terms_KT[0][row]) - expected) < 1e-9
        assert abs(float(result.ce_T[row]) + lp[dense.next_ids_R[row]]) < 1e-12
    share = 0.25 if name != "cross_entropy" else 0.0
    expected = (1 - share) * result.terms_KT[0].sum() + share * result.ce_T.sum()
    assert abs(float(result.loss.detach()) - float(expected)) < 1e-10


@pytest.mark.parametrize("name", ["forward_kl", "ghost_kl", "topk_renorm", "cross_entropy"])
@pytest.mark.parametrize("block_rows", [1, 2, 3, 7, 100])
def test_chunked_equals_unchunked(name, block_rows):
    dense = random_positions(ROWS, VOCAB)
    value, grads = sparse_gradients(dense, 0.3, name, block_rows=ROWS)
    chunk_value, chunk_grads = sparse_gradients(dense, 0.3, name, block_rows=block_rows)
    assert abs(float(value - chunk_value)) < 1e-11
    for got, want in zip(chunk_grads, grads, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def mean_over_u(dense, name="forward_kl", **spec):
    """The exact mean over the sampler's one uniform: value and gradients (hidden, weight)."""
    hidden, head = student()
    rows, u, weights = every_outcome(dense, **spec)
    every = type(dense)(dense.probs_RV[rows], dense.next_ids_R[rows])
    target = to_target(sample(every, u, **spec), every.next_ids_R)
    mean = distillation_loss(hidden[rows], head, target, mix(name), weights_T=torch.from_numpy(weights)).loss
    return float(mean.detach()) - dense.entropy_R.sum(), gradients(mean, hidden, head)


def dense_gradients(dense):
    hidden, head = student()
    value = dense_kl(dense_logits(hidden, head), dense.probs_RV)
    return float(value.detach()), gradients(value, hidden, head)


def relative_error(got, want):
    return float(sum((g - w).norm() ** 2 for g, w in zip(got, want, strict=True)) ** 0.5) / float(
        sum(w.norm() ** 2 for w in want) ** 0.5
    )


@pytest.mark.parametrize("spec", [{}, {"mode": "sampled"}, {"tau": 0.2}, {"tail_max": 2}, {"head_max": 3}], ids=str)
def test_unbiased_gradient_and_value(spec):
    dense = random_positions(ROWS, VOCAB, sharpness=1.5)
    value, grads = mean_over_u(dense, **spec)
    expected_value, expected = dense_gradients(dense)
    assert abs(value - expected_value) < 1e-10
    assert relative_error(grads, expected) < 1e-10


@pytest.mark.parametrize("name", ["topk_renorm", "ghost_kl"])
def test_negative_control_biased_losses_fail_the_unbiasedness_test(name):
    dense = random_positions(ROWS, VOCAB, sharpness=1.5)
    _, grads = mean_over_u(dense, name)
    _, expected = dense_gradients(dense)
    assert relative_error(grads, expected) > 0.05


def test_negative_control_a_shift_by_one_position_fails():
    dense = random_positions(ROWS, VOCAB, sharpness=1.5)
    shifted = type(dense)(np.roll(dense.probs_RV, 1, axis=0), np.roll(dense.next_ids_R, 1))
    value, grads = mean_over_u(shifted)
    expected_value, expected = dense_gradients(dense)
    assert relative_error(grads, expected) > 0.2
    assert abs(value - expected_value) > 0.02 * expected_value


def test_ghost_is_a_lower_bound_and_grows_with_k():
    dense = random_positions(ROWS, VOCAB)
    full, _ = dense_gradients(dense)
    values = [float(sparse_gradients(dense, 0.0, "ghost_kl", mode="topk", k=k)[0]) for k in (1, 4, 16, 40)]
    # kd - H(t) of the ghost also misses the tail's entropy; the bound is on kd - H(coarse t).
    coarse = []
    for k, value in zip((1, 4, 16, 40), values, strict=True):
        columns = sample(dense, np.zeros(ROWS), mode="topk", k=k)
        entropy = sum(
            -(p * np.log(p)).sum() - r * np.log(r) for p, r in zip(columns.head_probs, columns.tail_mass, strict=True)
        )
        coarse.append(value + dense.entropy_R.sum() - entropy)
    assert all(a <= b + 1e-12 for a, b in zip(coarse, [*coarse[1:], full], strict=True))


def test_ghost_keeps_the_digits_of_a_tiny_tail():
    """In float32, s = 1 - sum_H p would be rounding noise here: the student's tail mass is about 1e-9."""
    logits = torch.zeros(1, VOCAB, dtype=torch.float64)
    logits[0, 0] = 25.0
    columns = sample(random_positions(1, VOCAB), np.zeros(1), mode="topk", k=1)
    columns.head_ids[0], columns.head_probs[0], columns.tail_mass[0] = np.array([0]), np.array([0.9]), 0.1
    results = {}
    for dtype in (torch.float64, torch.float32):
        target = to_target(columns, np.array([0]), sampled_tail=False, dtype=dtype)
        z = logits.to(dtype, copy=True)
        terms = mix("ghost_kl")
        done = row_block_gradient(z, target, terms, Scales.of(terms, target), weights_R=None, with_grad=True)
        results[dtype] = done.terms_KR[0], done.grad_RV
    torch.testing.assert_close(results[torch.float32][0].double(), results[torch.float64][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(results[torch.float32][1].double(), results[torch.float64][1], rtol=1e-5, atol=1e-9)


def test_autocast_uses_low_precision_and_returns_gradients_in_the_parameters_dtype():
    dense = random_positions(ROWS, VOCAB)
    target = to_target(sample(dense, np.full(ROWS, 0.37)), dense.next_ids_R, dtype=torch.float32)
    hidden, head = student(dtype=torch.float32)
    plain = gradients(distillation_loss(hidden, head, target, mix("forward_kl")).loss, hidden, head)
    with torch.autocast("cpu", torch.bfloat16):
        loss = distillation_loss(hidden, head, target, mix("forward_kl")).loss
    mixed = gradients(loss, hidden, head)
    assert loss.dtype == torch.float32
    for a, b in zip(mixed, plain, strict=True):
        assert a.dtype == torch.float32
        assert 0 < float((a - b).norm() / b.norm()) < 0.02


def test_evaluation_keeps_no_gradients():
    dense = random_positions(ROWS, VOCAB)
    hidden, head = student()
    target = to_target(sample(dense, np.full(ROWS, 0.37)), dense.next_ids_R)
    with torch.no_grad():
        quiet = distillation_loss(hidden, head, target, mix("forward_kl"))
    loud = distillation_loss(hidden, head, target, mix("forward_kl"))
    assert not quiet.loss.requires_grad
    assert loud.loss.requires_grad
    torch.testing.assert_close(quiet.terms_KT, loud.terms_KT, rtol=0, atol=0)


def test_frozen_head_gets_no_gradient_and_backward_runs_once():
    dense = random_positions(ROWS, VOCAB)
    hidden, head = student()
    frozen = LMHead(weight_VD=head.weight_VD.detach())
    target = to_target(sample(dense, np.full(ROWS, 0.37)), dense.next_ids_R)
    loss = distillation_loss(hidden, frozen, target, mix("forward_kl")).loss
    loss.backward(retain_graph=True)
    assert hidden.grad is not None
    with pytest.raises(RuntimeError, match="backward once"):
        loss.backward()


def test_no_tensor_of_the_batch_by_the_vocabulary_is_made():
    """Every tensor made inside is at most a chunk or the head's gradient: nothing of [positions, vocab] ever exists."""
    rows, vocab, chunk = 64, 1000, 8
    dense = random_positions(rows, vocab)
    target = to_target(sample(dense, np.full(rows, 0.37)), dense.next_ids_R, dtype=torch.float32)
    hidden = torch.randn(rows, HIDDEN, requires_grad=True)
    head = LMHead(weight_VD=torch.randn(vocab, HIDDEN, requires_grad=True))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for item in out if isinstance(out, tuple | list) else (out,):
                if isinstance(item, torch.Tensor):
                    largest = max(largest, item.numel())
            return out

    with Watch():
        distillation_loss(hidden, head, target, mix("forward_kl"), block_rows=chunk).loss.backward()
    assert largest == max(chunk * vocab, vocab * HIDDEN)


def test_log_softmax_in_place_on_the_cpu():
    logits = torch.randn(33, 5000) * 10
    expected = torch.log_softmax(logits, -1)
    got = log_softmax_(logits)
    assert got.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_shapes_that_do_not_fit_are_refused():
    dense = random_positions(ROWS, VOCAB)
    hidden, head = student()
    target = to_target(sample(dense, np.full(ROWS, 0.37)), dense.next_ids_R)
    loss = mix("forward_kl")
    with pytest.raises(ShapeError, match="L - 1 positions"):
        distillation_loss(hidden[:-1], head, target, loss)
    with pytest.raises(ShapeError, match=r"\[positions, 5\]"):
        distillation_loss(hidden[:, :-1], head, target, loss)
    with pytest.raises(ShapeError, match="at least one term"):
        distillation_loss(hidden, head, target, [])
    with pytest.raises(ShapeError, match="as many weights"):
        distillation_loss(hidden, head, target, loss, weights_T=torch.ones(1))
    with pytest.raises(ShapeError, match="block_rows"):
        distillation_loss(hidden, head, target, loss, block_rows=0)


def test_losses_are_joined_by_a_plus_with_or_without_spaces():
    expected = Objective.parse("0.9*forward_kl + 0.1*cross_entropy")
    for weights in (("0.9", "+0.1"), ("0.9", " +0.1"), ("9e-1", "+1e-1")):
        text = "{}*forward_kl{}*cross_entropy".format(*weights)
        assert Objective.parse(text) == expected
    assert len(Objective.parse("js:beta=0.1+forward_kl").losses) == 2
    for number in ("+0.5", "5e+1", "5.e+1", "5E+1"):
        assert Objective.parse(f"{number}*forward_kl+cross_entropy").weights[0].at(0.0) == float(number)
    assert (
        Objective.parse("linear(+1,1e+1)*forward_kl+js:beta=+0.25").losses[1]
        == Objective.parse("js:beta=0.25").losses[0]
    )


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e999", "linear(1,nan)", "wsd(inf)", "wsd(1,nan,0.1)"])
def test_weights_that_are_no_numbers_are_refused(weight):
    with pytest.raises(LossParameterError, match="must be finite"):
        Objective.parse(f"{weight}*forward_kl + 0.1*cross_entropy")


@pytest.mark.parametrize("weight", ["1,2", "", "-1", "linear(1)", "linear(1,-1)", "wsd(1,2,3,4)"])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(LossParameterError, match=r"is no weight|negative"):
        Objective.parse(f"{weight}*forward_kl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("forward_kl +", "loss number 2 is missing"),
        ("forward_kl + + cross_entropy", "loss number 2 is missing"),
        ("forward_kl+0.1*", "loss number 2 is missing"),
    ],
)
def test_a_missing_loss_of_a_mix_is_said(text, message):
    with pytest.raises(LossParameterError, match=message):
        Objective.parse(text)
