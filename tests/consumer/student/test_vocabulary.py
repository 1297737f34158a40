"""Vocabularies of one tokenizer, padded differently: wider and narrower students, closed ids, ids of no token."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import open_casks
from logitcask_consumer.data.vocabulary import StudentVocabulary, token_count
from logitcask_consumer.head import LMHead, LogitTransform, LowRank, check_head, distillation_loss
from logitcask_consumer.losses import LOSSES
from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_consumer.weights.entropy_top import student_entropy
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.beyond_tokens import beyond_tokens
from tests.support.consumer.cask_builder import (
    VOCAB,
    build_cask,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)
from tests.support.consumer.reference_sampler import random_positions, sample, to_target

ROWS, HIDDEN, TEACHER, EXTRA = 6, 5, 40, 7


def target(tau=0.05, head_max=64):
    dense = random_positions(ROWS, TEACHER)
    columns = sample(dense, np.full(ROWS, 0.37), tau=tau, head_max=head_max)
    return dense, to_target(columns, dense.next_ids_R, documents=np.arange(ROWS) // 3)


def head(*, extra=EXTRA, bias=True, softcap=None):
    generator = torch.Generator().manual_seed(1)
    tensors = [
        torch.randn(n, generator=generator, dtype=torch.float64) for n in ((ROWS, HIDDEN), (47, HIDDEN), (47, 2))
    ]
    hidden, weight, up = (x[: TEACHER + extra] if len(x) == 47 else x for x in tensors)
    bias_V = torch.linspace(-1, 1, 47, dtype=torch.float64)[: TEACHER + extra].clone() if bias else None
    down = torch.ones(2, HIDDEN, dtype=torch.float64)
    return hidden.requires_grad_(), LMHead(
        weight_VD=weight.clone().requires_grad_(),
        bias_V=bias_V,
        low_rank=LowRank(down_KD=down, up_VK=up.clone().requires_grad_(), scale=0.5),
        transform=LogitTransform(softcap=softcap),
    )


def run(loss, hidden, lm_head, goal, block_rows=4):
    out = distillation_loss(hidden, lm_head, goal, [(1.0, loss)], block_rows=block_rows)
    return out, torch.autograd.grad(out.loss, (hidden, lm_head.weight_VD, lm_head.low_rank.up_VK))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_masked_ids_are_as_if_the_student_had_not_got_them(name, softcap):
    _, goal = target()
    hidden, wide = head(softcap=softcap)
    own, narrow = head(extra=0, softcap=softcap)
    expected, wanted = run(LOSSES[name], own, narrow, goal)
    out = distillation_loss(hidden, wide.narrowed(TEACHER), goal, [(1.0, LOSSES[name])], block_rows=4)
    torch.testing.assert_close(out.terms_KT, expected.terms_KT, rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(out.loss, (hidden, wide.weight_VD, wide.low_rank.up_VK))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine[: len(theirs)], theirs, rtol=1e-10, atol=1e-12)
        assert not mine[len(theirs) :].any()


@pytest.mark.parametrize("name", LOSSES)
def test_ids_without_probability_leave_every_loss_and_gradient_finite(name):
    """A bias of -inf: the same values as without the ids."""
    _, goal = target()
    own, narrow = head(extra=0)
    expected, wanted = run(LOSSES[name], own, narrow, goal)
    hidden, wide = head()
    wide.bias_V[TEACHER:] = -torch.inf
    out, got = run(LOSSES[name], hidden, wide, goal)
    torch.testing.assert_close(out.terms_KT, expected.terms_KT, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine[: len(theirs)], theirs, rtol=1e-8, atol=1e-10)
        assert not mine[len(theirs) :].any()


def dense(name, t, logp):
    """The loss on distributions over all of the student's ids, t being 0 beyond the teacher's; sums over rows."""
    p, m = logp.exp(), 0.5 * (t + logp.exp())
    half = torch.special.entr
    return {
        "forward_kl": lambda: -(t * logp).sum(),
        "js": lambda: 0.5 * (-half(t) - t * m.log() + p * (logp - m.log())).sum(),
        "tvd": lambda: 0.5 * (t - p).abs().sum(),
        "skew_kl": lambda: (-half(t) - t * (0.1 * t + 0.9 * p).log()).sum(),
        "skew_reverse_kl": lambda: (p * (logp - (0.9 * t + 0.1 * p).log())).sum(),
    }[name]()


@pytest.mark.parametrize("name", ["forward_kl", "js", "tvd", "skew_kl", "skew_reverse_kl"])
def test_kept_ids_are_a_teacher_padded_with_zeros(name):
    positions, goal = target(tau=1e-12, head_max=TEACHER)
    t = torch.from_numpy(np.pad(positions.probs_RV, ((0, 0), (0, EXTRA))))
    hidden, wide = head()
    _, got = run(LOSSES[name], hidden, wide, goal)
    products = (
        hidden @ wide.weight_VD.T + wide.bias_V + 0.5 * (hidden @ wide.low_rank.down_KD.T) @ wide.low_rank.up_VK.T
    )
    expected = dense(name, t, torch.log_softmax(products, -1))
    wanted = torch.autograd.grad(expected, (hidden, wide.weight_VD, wide.low_rank.up_VK))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    assert float(got[1][TEACHER:].abs().max()) > 1e-3, "their mass is taken away"


def test_entropy_of_a_student_with_closed_ids_is_a_number():
    hidden, wide = head()
    own, narrow = head(extra=0)
    wide.bias_V[TEACHER:] = -torch.inf
    torch.testing.assert_close(student_entropy(hidden, wide), student_entropy(own, narrow), rtol=1e-10, atol=0)


def test_a_head_with_closed_ids_is_proved_and_another_change_still_refused():
    model = tiny_model("phi", layers=2)
    with torch.no_grad():
        model.lm_head.bias[5:9] = -torch.inf
    check_head(model)
    forward = model.forward

    def louder(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 1.1
        return out

    model.forward = louder
    with pytest.raises(ValueError, match="LogitTransform"):
        check_head(model)


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A cask of a teacher with 8 ids more than its tokenizer, and the teacher."""
    folder = tmp_path_factory.mktemp("padded")
    teacher = save_teacher(folder / "teacher", vocab_size=VOCAB + 8)
    build_cask(folder / "cask", teacher, random_documents(24), vocab_size=VOCAB + 8)
    build_cask(folder / "plain", save_teacher(folder / "other"), random_documents(24))
    return folder


def student(folder, vocab):
    tiny_model(layers=2, vocab_size=vocab, tie_word_embeddings=False).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def config(padded, tmp_path, cask, vocab, **more):
    return TrainConfig(
        **{
            "casks": (padded / cask,),
            "student": str(student(tmp_path / "student", vocab)),
            "output": tmp_path / "out",
            "seq_len": 64,
            "batch_tokens": 256,
            "max_steps": 8,
            "lr": 5e-3,
            **more,
        }
    )


@pytest.mark.parametrize("extra_ids", ["keep", "mask"])
def test_a_wider_student_trains_and_is_reported_on(padded, tmp_path, extra_ids):
    run_config = config(padded, tmp_path, "plain", VOCAB + 15, extra_ids=extra_ids)
    result = train(run_config)
    assert result.initial is not None
    before, after = (
        load_file(folder / "model.safetensors")["lm_head.weight"] for folder in (result.initial, result.output)
    )
    moved = (after - before).abs().amax(1)
    assert float(moved[:VOCAB].max()) > 1e-3
    # Weight decay alone moves rows without a gradient.
    decayed = torch.allclose(after[VOCAB:], before[VOCAB:] * (after[-1, 0] / before[-1, 0]), rtol=1e-3)
    assert decayed == (extra_ids == "mask")
    lines = read_metrics(run_config.output / "metrics.jsonl")
    assert lines[-1]["kl"] < lines[0]["kl"]
    report = make_report(
        ReportConfig(casks=(padded / "plain",), models=(("s", result.output),), output=tmp_path / "report")
    )
    figures = report["models"][0]
    assert figures["reading"]["extra_ids"] == extra_ids
    value = figures["metrics"]["kl"]["value"]
    if extra_ids == "mask":
        # The distribution that was trained: a model whose extra rows are cut off has the same figures.
        cut = tmp_path / "cut"
        model = AutoModelForCausalLM.from_pretrained(result.output)
        model.resize_token_embeddings(VOCAB)
        model.save_pretrained(cut)
        AutoTokenizer.from_pretrained(result.output).save_pretrained(cut)
        alone = make_report(ReportConfig(casks=(padded / "plain",), models=(("s", cut),), output=tmp_path / "alone"))
        assert value == pytest.approx(alone["models"][0]["metrics"]["kl"]["value"], abs=1e-5)
        assert "--extra-ids mask" in (tmp_path / "report" / "report.md").read_text()
    assert np.isfinite(value)


def test_a_narrower_student_trains_where_no_record_holds_an_id_beyond_it(padded, tmp_path):
    """What records hold is asked for when they are read; the error names the document and the id."""
    said = []
    with pytest.raises(IdentityMismatchError, match=rf"document \d+: .* the student has {VOCAB} ids"):
        train(config(padded, tmp_path, "cask", VOCAB), say=said.append)
    assert any("no tokens of the tokenizer" in line for line in said)
    narrow = config(padded, tmp_path / "second", "plain", VOCAB)
    # The same records under the name of a wider teacher: nothing in them lies beyond the student.
    wider = tmp_path / "wider"
    build_cask(wider, save_teacher(tmp_path / "t"), random_documents(24), vocab_size=VOCAB + 8)
    result = train(replace(narrow, casks=(wider,)))
    assert result.run["status"] == "finished"
    report = make_report(ReportConfig(casks=(wider,), models=(("s", result.output),), output=tmp_path / "report"))
    assert np.isfinite(report["models"][0]["metrics"]["kl"]["value"])


def test_a_student_that_lacks_tokens_is_refused(padded, tmp_path):
    with pytest.raises(IdentityMismatchError, match=f"the student's vocabulary has {VOCAB - 5} ids.*resize"):
        train(config(padded, tmp_path, "plain", VOCAB - 5))
    assert not (tmp_path / "out").exists()


def test_records_with_a_closed_id_are_refused(padded, tmp_path):
    folder = tmp_path / "student"
    model = tiny_model("phi", layers=2)
    with torch.no_grad():
        model.lm_head.bias[11] = -torch.inf
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    run_config = replace(config(padded, tmp_path / "x", "plain", VOCAB), student=str(folder), output=tmp_path / "out")
    with pytest.raises(IdentityMismatchError, match="hold id 11; the student gives it no probability"):
        train(run_config)


def test_the_rule_by_numbers():
    fits = StudentVocabulary(width=100, teacher=105)
    fits.require_tokens(97)
    with pytest.raises(IdentityMismatchError, match="100 ids"):
        fits.require_tokens(103)
    with pytest.raises(IdentityMismatchError, match="105"):
        fits.require_tokens(None)
    assert fits.masked_width("mask") is None
    wide = StudentVocabulary(width=120, teacher=105)
    wide.require_tokens(None)
    assert (wide.masked_width("mask"), wide.masked_width("keep")) == (105, None)
    # A padding token whose id has no row: the teacher lacks it, so may the student.
    StudentVocabulary(width=97, teacher=97).require_tokens(98)
    assert token_count(tiny_tokenizer()) == VOCAB


def by_hand(records):
    """Mass and number of positions with an id that is no token, position by position."""
    mass, count = 0.0, 0
    for each in records:
        heads = np.split(np.arange(len(each.head_ids_H)), np.cumsum(each.head_counts_P)[:-1])
        tails = np.split(np.arange(len(each.tail_ids_N)), np.cumsum(each.tail_counts_P)[:-1])
        for row, (in_head, in_tail) in enumerate(zip(heads, tails, strict=True)):
            far, drawn = each.head_ids_H[in_head] >= VOCAB, each.tail_ids_N[in_tail] >= VOCAB
            mass += float(np.exp(each.head_logprobs_H[in_head][far].astype(float)).sum())
            mass += float(drawn.mean() * np.exp(float(each.log_tail_mass_P[row]))) if len(drawn) else 0.0
            count += bool(far.any() or drawn.any())
    return mass, count


def test_mass_beyond_the_tokens_is_added_up(padded):
    [cask] = open_casks([padded / "cask"], tokenizer_fingerprint=None)
    records = [cask.read(n).records for n in range(len(cask))]
    seen = beyond_tokens(records, VOCAB)
    mass, count = by_hand(records)
    assert count > 0
    assert (seen.records, seen.positions) == (count, cask.num_positions)
    assert seen.blocks == sum(by_hand([each])[1] > 0 for each in records)
    assert seen.mass * seen.positions == pytest.approx(mass, rel=1e-6)
    assert VOCAB <= seen.largest_id < VOCAB + 8
    none = beyond_tokens(records, VOCAB + 8)
    assert (none.records, none.blocks, none.mass, none.largest_id) == (0, 0, 0.0, 0)


def test_a_report_tells_of_mass_beyond_the_tokens(padded, tmp_path):
    folder = student(tmp_path / "student", VOCAB + 8)
    report = make_report(ReportConfig(casks=(padded / "cask",), models=(("s", folder),), output=tmp_path / "report"))
    [warning] = [line for line in report["warnings"] if "no tokens of the tokenizer" in line]
    [cask] = open_casks([padded / "cask"], tokenizer_fingerprint=None)
    mass, count = by_hand(cask.read(n).records for n in range(len(cask)))
    assert f"{count:,} of {cask.num_positions:,} records" in warning
    assert f"{mass / cask.num_positions:.2g} of its mass" in warning
    assert warning in (tmp_path / "report" / "report.md").read_text()
