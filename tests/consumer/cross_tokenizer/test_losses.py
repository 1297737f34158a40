"""alm and uld against their definitions in dense float64, through the LM head in spans of whole chunks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_consumer.cross_tokenizer.chunk_head import chunk_distillation_loss
from logitcask_consumer.cross_tokenizer.losses import Alm, NextToken, Uld
from logitcask_consumer.head import LMHead, LogitTransform, ShapeError
from logitcask_consumer.head.lm_head import LowRank
from logitcask_consumer.losses import LossParameterError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.chunk_reference import dense_alm, dense_uld, random_target

ROWS, HIDDEN, VOCAB = 23, 5, 40
CLOSING = torch.arange(VOCAB) % 3 == 0


def student(*, seed=1, bias=False, dtype=torch.float64, **transform):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=dtype).requires_grad_()
    bias_V = torch.randn(VOCAB, generator=generator, dtype=dtype).requires_grad_() if bias else None
    return hidden, LMHead(weight_VD=weight, bias_V=bias_V, transform=LogitTransform(**transform))


def inputs(hidden, head):
    return [x for x in (hidden, head.weight_VD, head.bias_V) if x is not None]


ALMS = [
    Alm(),
    Alm(temperature=1.0),
    Alm(divergence="reverse_kl"),
    Alm(divergence="tvd", temperature=10.0),
    Alm(debias="none"),
]


@pytest.mark.parametrize("block_rows", [1, 4, 7, 1000])
@pytest.mark.parametrize("loss", ALMS, ids=lambda loss: loss.spec)
def test_alm_equals_its_definition(loss, block_rows):
    target, _ = random_target(rows=ROWS, vocab=VOCAB)
    hidden, head = student(bias=True)
    got = chunk_distillation_loss(hidden, head, target, [(0.7, loss)], closing_V=CLOSING, block_rows=block_rows)
    options = {"temperature": loss.temperature, "divergence": loss.divergence, "debias": loss.debias == "space"}
    want = 0.7 * dense_alm(head.logits(hidden), target, CLOSING, **options).sum()
    torch.testing.assert_close(got.loss, want, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(got.terms_K[0] * 0.7, want, rtol=1e-8, atol=1e-10)
    found, expected = (torch.autograd.grad(x, inputs(hidden, head)) for x in (got.loss, want))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_alm_is_zero_at_the_teachers_likelihoods_and_positive_elsewhere():
    target, _ = random_target(rows=ROWS, vocab=VOCAB)
    hidden, head = student()
    log_p = torch.log_softmax(head.logits(hidden), -1).detach()
    own = log_p[torch.arange(ROWS), target.next_ids_R]
    sums = torch.zeros(target.num_chunks + 1, dtype=own.dtype).index_add(0, target.chunk_of_R, own)[:-1]
    for loss in (Alm(debias="none"), Alm(debias="none", divergence="tvd"), Alm(debias="none", divergence="reverse_kl")):
        right = chunk_distillation_loss(
            hidden, head, replaced(target, teacher_logprobs_C=sums), [(1.0, loss)], closing_V=CLOSING
        )
        assert abs(float(right.loss.detach())) < 1e-9
        wrong = chunk_distillation_loss(
            hidden, head, replaced(target, teacher_logprobs_C=sums.roll(1)), [(1.0, loss)], closing_V=CLOSING
        )
        assert float(wrong.loss.detach()) > 0.1, "likelihoods of the chunks beside them must not do as well"


def replaced(target, **fields):
    from dataclasses import replace

    return replace(target, **fields)


def test_alm_keeps_its_size_whatever_the_temperature():
    """For a high temperature the loss is a log(a / b) - a + b."""
    target, _ = random_target(rows=ROWS, vocab=VOCAB)
    hidden, head = student()
    own = torch.log_softmax(head.logits(hidden), -1)[torch.arange(ROWS), target.next_ids_R]
    sums = torch.zeros(target.num_chunks + 1, dtype=own.dtype).index_add(0, target.chunk_of_R, own)[:-1]
    a, b = -target.teacher_logprobs_C, -sums
    limit = (a * (a / b).log() - a + b).sum().detach()
    for temperature, tolerance in ((100.0, 0.15), (1000.0, 0.02)):
        loss = Alm(temperature=temperature, debias="none")
        got = chunk_distillation_loss(hidden, head, target, [(1.0, loss)], closing_V=CLOSING).loss.detach()
        torch.testing.assert_close(got, limit, rtol=tolerance, atol=0)


@pytest.mark.parametrize("certain", ["student", "teacher"])
def test_alm_is_finite_where_a_model_is_certain(certain):
    target, _ = random_target(rows=ROWS, vocab=VOCAB)
    hidden, head = student()
    if certain == "student":
        logits = torch.full((ROWS, VOCAB), -200.0, dtype=torch.float64)
        logits[torch.arange(ROWS), target.next_ids_R] = 200.0
        hidden, head = torch.eye(ROWS, dtype=torch.float64).requires_grad_(), LMHead(weight_VD=logits.T.contiguous())
    else:
        target = replaced(target, teacher_logprobs_C=torch.zeros_like(target.teacher_logprobs_C))
    result = chunk_distillation_loss(hidden, head, target, [(1.0, Alm(debias="none"))], closing_V=CLOSING)
    gradient = torch.autograd.grad(result.loss, hidden)[0]
    assert torch.isfinite(result.loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("block_rows", [3, 1000])
def test_uld_with_whole_distributions_equals_the_dense_loss(block_rows):
    teacher = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(VOCAB, 0.3), 1)).sort(descending=True).values
    target, _ = random_target(rows=ROWS, vocab=VOCAB)
    pairs = len(target.pair_rows)
    target = replaced(
        target, top_probs_PK=teacher.expand(pairs, VOCAB), top_counts_P=torch.full((pairs,), VOCAB, dtype=torch.int64)
    )
    hidden, head = student()
    got = chunk_distillation_loss(hidden, head, target, [(1.0, Uld())], closing_V=CLOSING, block_rows=block_rows).loss
    p = torch.softmax(head.logits(hidden), -1)[target.pair_rows_P]
    want = dense_uld(teacher.expand(pairs, VOCAB), p).sum()
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    found, expected = (torch.autograd.grad(x, inputs(hidden, head)) for x in (got, want))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_uld_of_a_student_with_fewer_tokens_than_the_head_takes_the_others_as_one_bucket():
    teacher = torch.full((1, 50), 0.02, dtype=torch.float64)
    target, _ = random_target(rows=ROWS, vocab=VOCAB)
    pairs = len(target.pair_rows)
    target = replaced(
        target, top_probs_PK=teacher.expand(pairs, 50), top_counts_P=torch.full((pairs,), 50, dtype=torch.int64)
    )
    head = LMHead(weight_VD=torch.zeros(VOCAB, HIDDEN, dtype=torch.float64))
    hidden = torch.zeros(ROWS, HIDDEN, dtype=torch.float64)
    got = chunk_distillation_loss(hidden, head, target, [(1.0, Uld())], closing_V=CLOSING).loss
    assert float(got) == pytest.approx(pairs * (40 * (1 / 40 - 0.02) + 10 * 0.02))


@settings(deadline=None)
@given(seed=st.integers(0, 2**20), top=st.integers(1, 39))
def test_uld_is_a_lower_bound_within_its_stated_error(seed, top):
    target, teacher = random_target(rows=ROWS, vocab=VOCAB, top=top, seed=seed)
    hidden, head = student(seed=seed)
    p = torch.softmax(head.logits(hidden), -1).detach()[target.pair_rows_P]
    dense = dense_uld(teacher, p)
    for pair in range(len(dense)):
        k = int(target.top_counts_P[pair])
        one = replaced(
            target,
            pair_rows_P=target.pair_rows_P[pair : pair + 1],
            pair_rows=target.pair_rows[pair : pair + 1],
            top_probs_PK=target.top_probs_PK[pair : pair + 1],
            top_counts_P=target.top_counts_P[pair : pair + 1],
        )
        got = float(chunk_distillation_loss(hidden, head, one, [(1.0, Uld())], closing_V=CLOSING).loss.detach())
        rest = 1 - float(teacher[pair, :k].sum())
        own_rest = 1 - float(p[pair].sort(descending=True).values[:k].sum())
        assert got <= float(dense[pair]) + 1e-9
        assert float(dense[pair]) <= got + 2 * min(rest, own_rest) + 1e-9


def test_the_bound_on_uld_fails_for_a_head_that_is_not_the_top():
    """The control: a likely token left out of the head is no lower bound any more."""
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    teacher = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    assert float(dense_uld(teacher, p)) == 0.0
    target, _ = random_target(rows=ROWS, vocab=3)
    one = replaced(
        target,
        pair_rows_P=target.pair_rows_P[:1],
        pair_rows=target.pair_rows[:1],
        top_probs_PK=torch.tensor([[0.2]], dtype=torch.float64),
        top_counts_P=torch.ones(1, dtype=torch.int64),
    )
    head = LMHead(weight_VD=p.log().T.contiguous())
    ones = torch.ones(ROWS, 1, dtype=torch.float64)
    got = chunk_distillation_loss(ones, head, one, [(1.0, Uld())], closing_V=CLOSING[:3]).loss
    assert float(got) == pytest.approx(0.6)


@pytest.mark.parametrize("transform", [{}, {"softcap": 3.0}, {"scale": 0.5}])
def test_gradcheck_of_a_mix(transform):
    target, _ = random_target(rows=ROWS, vocab=VOCAB, top=4)
    hidden, head = student(bias=True, **transform)
    terms = [(0.5, Alm(temperature=5.0)), (1.5, Uld()), (0.3, NextToken())]

    def loss_of(hidden_TD, weight_VD, bias_V):
        part = LMHead(weight_VD=weight_VD, bias_V=bias_V, transform=head.transform)
        return chunk_distillation_loss(hidden_TD, part, target, terms, closing_V=CLOSING[:VOCAB], block_rows=5).loss

    class Repeatable(torch.autograd.Function):
        """gradcheck runs backward several times on one graph; the loss allows one."""

        @staticmethod
        def forward(ctx, *given):
            leaves = [x.detach().requires_grad_() for x in given]
            with torch.enable_grad():
                loss = loss_of(*leaves)
                ctx.save_for_backward(*torch.autograd.grad(loss, leaves))
            return loss.detach()

        @staticmethod
        def backward(ctx, grad):
            return tuple(grad * g for g in ctx.saved_tensors)

    assert torch.autograd.gradcheck(Repeatable.apply, tuple(inputs(hidden, head)), fast_mode=True)


def test_an_adapter_of_the_head_is_seen_and_trained():
    target, _ = random_target(rows=ROWS, vocab=VOCAB)
    hidden, head = student(bias=True)
    generator = torch.Generator().manual_seed(3)
    down = torch.randn(2, HIDDEN, generator=generator, dtype=torch.float64).requires_grad_()
    up = torch.randn(VOCAB, 2, generator=generator, dtype=torch.float64).requires_grad_()
    whole = replaced(head, low_rank=LowRank(down_KD=down, up_VK=up, scale=0.5))
    terms = [(1.0, Alm()), (0.2, NextToken())]
    got = chunk_distillation_loss(hidden, whole, target, terms, closing_V=CLOSING, block_rows=6).loss
    merged = replaced(head, weight_VD=head.weight_VD + 0.5 * up @ down)
    want = chunk_distillation_loss(hidden, merged, target, terms, closing_V=CLOSING).loss
    torch.testing.assert_close(got, want)
    leaves = [*inputs(hidden, head), down, up]
    torch.testing.assert_close(*(torch.autograd.grad(x, leaves) for x in (got, want)))


def test_a_mix_is_the_sum_of_its_parts_and_cross_entropy_counts_its_rows():
    target, _ = random_target(rows=ROWS, vocab=VOCAB)
    hidden, head = student()
    losses = [Alm(), Uld(), NextToken()]
    mix = chunk_distillation_loss(
        hidden, head, target, [(w, x) for w, x in zip((0.5, 1.5, 1.0), losses, strict=True)], closing_V=CLOSING
    )
    alone = [chunk_distillation_loss(hidden, head, target, [(1.0, x)], closing_V=CLOSING) for x in losses]
    torch.testing.assert_close(mix.terms_K, torch.stack([x.loss.detach() for x in alone]))
    torch.testing.assert_close(mix.loss, 0.5 * alone[0].loss + 1.5 * alone[1].loss + alone[2].loss)
    log_p = torch.log_softmax(head.logits(hidden), -1)[torch.arange(ROWS), target.next_ids_R]
    torch.testing.assert_close(mix.ce, -log_p[target.counted_R].sum().detach())
    torch.testing.assert_close(mix.ce, alone[2].loss.detach())
    again = chunk_distillation_loss(hidden, head, target, [(1.0, losses[2])], closing_V=CLOSING).loss
    again.backward()
    with pytest.raises(RuntimeError, match="once"):
        again.backward()


def test_float32_agrees_with_float64():
    target, _ = random_target(rows=ROWS, vocab=VOCAB)
    terms = [(1.0, Alm()), (1.0, Uld())]
    values = []
    for dtype in (torch.float32, torch.float64):
        hidden, head = student()
        cast = LMHead(weight_VD=head.weight_VD.detach().to(dtype))
        values.append(chunk_distillation_loss(hidden.detach().to(dtype), cast, target, terms, closing_V=CLOSING).loss)
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-3, atol=1e-3)


@settings(deadline=None)
@given(seed=st.integers(0, 2**20), most=st.integers(1, 30))
def test_spans_cover_every_row_once_and_cut_no_chunk(seed, most):
    target, _ = random_target(rows=ROWS, seed=seed)
    spans = target.spans(most)
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])]
    assert spans[-1][1] == ROWS
    chunks = [(int(a), int(b)) for a, b in zip(target.chunk_starts_C, target.chunk_stops_C, strict=True)]
    inside = [[c for c in chunks if a <= c[0] and c[1] <= b] for a, b in spans]
    assert [c for some in inside for c in some] == chunks
    assert all(b - a <= most or (a, b) in chunks for a, b in spans)


def test_what_records_cannot_support_is_named():
    assert "debias=none" in Alm().missing(CaptureSpec(mode="topk"))[0]
    assert not Alm(debias="none").missing(CaptureSpec(mode="topk"))
    assert not Alm().missing(CaptureSpec(mode="sampled"))
    assert "threshold" in Uld().missing(CaptureSpec(mode="sampled"))[0]
    with pytest.raises(LossParameterError, match="temperature"):
        Alm(temperature=0.5)
    with pytest.raises(LossParameterError, match="threshold"):
        Alm(threshold=1.0)
    assert (Alm().estimator, Alm(debias="none", threshold=-1.0).estimator, Uld().estimator) == (
        "consistent",
        "exact",
        "bound",
    )
    assert Alm(temperature=10.0, debias="none").spec == "alm:temperature=10,debias=none"
    target, _ = random_target(rows=ROWS)
    with pytest.raises(ShapeError, match="hidden states"):
        chunk_distillation_loss(torch.zeros(3, HIDDEN), student()[1], target, [(1.0, Alm())], closing_V=CLOSING)
