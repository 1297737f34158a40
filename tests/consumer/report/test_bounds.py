"""What a record says of a token that it does not hold: the truth lies between both ends, whatever was drawn."""

import numpy as np
import pytest
import torch

from logitcask_consumer.data import CaskDataset, open_casks
from logitcask_consumer.report.bounds import (
    FIRST,
    HeadRule,
    acceptance_doubt,
    among_first,
    outside_bound,
    probability_bounds,
)
from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.evaluate import evaluate_model
from logitcask_consumer.report.make_report import make_report
from logitcask_schemas.cask.format.codec_u8 import LEVELS
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    build_cask,
    dense_positions,
    random_documents,
    save_teacher,
    tiny_tokenizer,
)
from tests.support.consumer.reference_sampler import (
    DensePositions,
    every_outcome,
    head_rule,
    random_positions,
    sample,
    to_target,
)

ROWS, VOCAB = 5, 40
CAPTURES = [
    {},
    {"tau": 0.2},
    {"tau": 0.01, "head_max": 3},
    {"tail_max": 2},
    {"mode": "topk", "k": 3},
    {"mode": "topk", "k": 6},
    {"mode": "sampled", "draws": 6},
]


def outcomes(capture, *, seed=0):
    """Every record that the sampler can give for some positions, with the positions themselves."""
    dense = random_positions(ROWS, VOCAB, sharpness=1.5, seed=seed)
    rows, u, _ = every_outcome(dense, **capture)
    every = DensePositions(dense.probs_RV[rows], dense.next_ids_R[rows])
    target = to_target(sample(every, u, **capture), every.next_ids_R, sampled_tail=capture.get("mode") != "topk")
    return every.probs_RV, target


def held(target, ids_R, *, draws):
    """Whether the record of each row holds a token, in its head or, if `draws`, among its draws."""
    in_head = target.head_sum((target.head_ids_H == ids_R[target.head_rows_H]).double()) > 0
    in_tail = target.tail_sum((target.tail_ids_N == ids_R[target.tail_rows_N]).double()) > 0
    return (in_head | in_tail) if draws else in_head


@pytest.mark.parametrize("capture", CAPTURES, ids=str)
def test_no_token_outside_a_head_is_above_the_bound(capture):
    t_RV, target = outcomes(capture)
    outside = t_RV.copy()
    outside[target.head_rows_H, target.head_ids_H] = 0.0
    bound_R = outside_bound(target, head_rule(**capture)).numpy()
    assert (bound_R >= outside.max(1) - 1e-12).all()
    if capture.get("mode") != "sampled":
        assert (bound_R < target.tail_mass_R.numpy() - 1e-3).any(), "the rule says more than the tail's mass does"


@pytest.mark.parametrize("with_tail", [True, False])
@pytest.mark.parametrize("capture", CAPTURES, ids=str)
def test_the_probability_of_every_token_lies_between_its_bounds(capture, with_tail):
    t_RV, target = outcomes(capture)
    tail = target.tail_logprobs_N if with_tail else None
    for token in range(VOCAB):
        ids_R = torch.full((len(t_RV),), token)
        low_R, high_R = probability_bounds(target, ids_R, head_rule(**capture), tail)
        t_R = torch.from_numpy(t_RV[:, token])
        assert (low_R <= t_R + 1e-12).all()
        assert (t_R <= high_R + 1e-12).all()
        known_R = held(target, ids_R, draws=with_tail)
        torch.testing.assert_close(low_R[known_R], t_R[known_R], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(high_R[known_R], t_R[known_R], rtol=1e-9, atol=1e-12)


def test_negative_control_a_token_that_was_drawn_c_times_may_have_more_than_c_shares():
    t_RV, target = outcomes({"mode": "sampled", "draws": 20})
    share_R = target.tail_mass_R / 20
    outside = 0
    for token in range(VOCAB):
        drawn_N = (target.tail_ids_N == token).double()
        times_R, t_R = target.tail_sum(drawn_N), torch.from_numpy(t_RV[:, token])
        in_tail_R = (times_R > 0) & ~held(target, torch.full((len(t_RV),), token), draws=False)
        outside += int((t_R[in_tail_R] > (times_R * share_R)[in_tail_R]).sum())
    assert outside > 0, "one share less would have enclosed the truth too"


def test_independent_draws_give_no_bound_by_their_number():
    _, target = outcomes({"mode": "sampled", "draws": 6})
    rule = HeadRule(limit=0, least=1.0, systematic=False, rounding=(0.0, 0.0))
    low_R, high_R = probability_bounds(
        target, target.tail_ids_N[torch.from_numpy(target.tail_offsets_R1[:-1])], rule, None
    )
    assert (low_R == 0).all()
    torch.testing.assert_close(high_R, target.tail_mass_R)


@pytest.mark.parametrize("capture", CAPTURES, ids=str)
def test_whether_a_token_is_among_the_first_five(capture):
    t_RV, target = outcomes(capture)
    first_RK = np.argsort(-t_RV, axis=1, kind="stable")[:, :FIRST]
    unknown = 0
    for token in range(VOCAB):
        low_R, high_R = among_first(target, torch.full((len(t_RV),), token), head_rule(**capture))
        truth_R = torch.from_numpy((first_RK == token).any(1)).double()
        assert (low_R <= truth_R).all()
        assert (truth_R <= high_R).all()
        unknown += int((low_R < high_R).sum())
    if capture.get("k") == 6:
        assert unknown == 0, "six largest tell the first five"
    elif capture not in ({}, {"tail_max": 2}):
        assert unknown > 0, "fewer do not"


def test_the_rule_of_a_spec():
    topk = HeadRule.of(CaptureSpec(mode="topk", k=7))
    assert topk == HeadRule(limit=7, least=0.0, systematic=False, rounding=(0.01, 0.01), codec="f16")
    threshold = HeadRule.of(CaptureSpec(tau=0.1, head_max=9, logprob_codec="f32"))
    assert (threshold.limit, threshold.least, threshold.systematic) == (9, 0.1, True)
    sampled = HeadRule.of(CaptureSpec(mode="sampled", sampler="multinomial", logprob_codec="u8"))
    assert (sampled.limit, sampled.systematic) == (0, False)
    assert sampled.rounding > threshold.rounding


@pytest.mark.parametrize("codec", ["f16", "u8"])
def test_rounding_makes_no_token_of_the_tail_one_of_the_first(codec):
    """A next token just below the threshold, rounded up, is not taken for the likeliest token behind the head."""
    spec = CaptureSpec(tau=0.1, logprob_codec=codec)
    probs = np.zeros((1, VOCAB))
    probs[0, :6] = [0.3, 0.2, 0.15, 0.12, 0.0999, 0.0998]
    probs[0, 6:] = (1 - probs.sum()) / (VOCAB - 6)
    dense = DensePositions(probs, np.array([5]))  # y is the sixth, and stands fifth in the head
    columns = sample(dense, np.zeros(1), tau=0.1)
    columns.head_probs[0] = columns.head_probs[0].copy()
    columns.head_probs[0][-1] *= 1.004
    target = to_target(columns, dense.next_ids_R)
    low_R, high_R = among_first(target, torch.tensor([4]), HeadRule.of(spec))
    assert (low_R.item(), high_R.item()) == (0.0, 1.0)


def test_the_steps_of_a_byte_are_never_larger_than_the_rule_says():
    """A probability is stored as one of the levels around it: the lower one says most of it, the upper one least."""
    upper, lower = torch.from_numpy(np.exp(LEVELS[:-1])), torch.from_numpy(np.exp(LEVELS[1:]))
    rule = HeadRule.of(CaptureSpec(mode="topk", k=7, logprob_codec="u8"))
    assert (rule.most(lower) >= upper).all()
    fine = HeadRule(limit=7, least=0.0, systematic=False, rounding=(0.15, 0.15))
    assert (fine.most(lower) < upper).sum() == 31, "negative control: the coarse steps are larger"


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """The teacher, and students: itself, and one that is very near. Of each its acceptance in float64, by position."""
    folder = tmp_path_factory.mktemp("rounded")
    teacher, near = save_teacher(folder / "teacher"), save_teacher(folder / "near")
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in near.parameters():
            weight.add_(torch.randn(weight.shape, generator=noise) * 5e-4)
    documents = random_documents(24, seed=3)
    accepted = []
    for student in (teacher, near):
        pairs = [(dense_positions(teacher, ids).probs_RV, dense_positions(student, ids).probs_RV) for ids in documents]
        accepted.append(np.concatenate([np.minimum(t_RV, p_RV).sum(1) for t_RV, p_RV in pairs]).mean())
    return documents, [(teacher, accepted[0]), (near, accepted[1])]


@pytest.mark.parametrize("codec", ["f32", "f16", "u8", "u8all"])
@pytest.mark.parametrize(
    "capture", [{"tau": 0.01}, {"mode": "topk", "k": 20}, {"mode": "sampled", "draws": 8}], ids=str
)
def test_the_acceptance_lies_between_its_bounds_however_records_are_rounded(students, tmp_path, capture, codec):
    documents, measured = students
    teacher = measured[0][0]
    cask = build_cask(tmp_path / "cask", teacher, documents, spec=CaptureSpec(logprob_codec=codec, **capture))
    dataset = CaskDataset(open_casks([cask], tokenizer_fingerprint=None), seq_len=64)
    for student, accepted in measured:
        values = evaluate_model(student, dataset, batch_sequences=4).values
        low, high = (float(values[f"acceptance_{end}"].mean(dtype=np.float64)) for end in ("low", "high"))
        assert low <= accepted + 1e-6
        assert accepted - 1e-6 <= high
        assert high < accepted + 0.02 or capture.get("mode") == "sampled", "it says something"


def test_negative_control_rounded_records_of_the_teacher_put_it_above_its_own_bound(students, tmp_path, monkeypatch):
    documents, [(teacher, accepted), _] = students
    spec = CaptureSpec(tau=0.01, logprob_codec="u8")
    cask = build_cask(tmp_path / "cask", teacher, documents, spec=spec)
    dataset = CaskDataset(open_casks([cask], tokenizer_fingerprint=None), seq_len=64)
    monkeypatch.setattr(
        "logitcask_consumer.report.evaluate.acceptance_doubt", lambda target, rule: 0.0 * acceptance_doubt(target, rule)
    )
    high = evaluate_model(teacher, dataset, batch_sequences=4).values["acceptance_high"].mean(dtype=np.float64)
    assert high < accepted - 1e-3


@pytest.mark.parametrize(("codec", "lost", "above"), [("f16", 1e-3, 2e-6), ("u8", 0.01, 1e-4), ("u8all", 0.01, 1e-4)])
def test_what_coarse_codecs_do_to_estimates_is_what_the_report_says(students, tmp_path, codec, lost, above):
    """Of the teacher itself, whose acceptance is 1 and whose KL is 0."""
    documents, [(teacher, accepted), _] = students
    cask = build_cask(
        tmp_path / "cask", teacher, documents, spec=CaptureSpec(tau=0.01, logprob_codec=codec, tail_logprobs=True)
    )
    dataset = CaskDataset(open_casks([cask], tokenizer_fingerprint=None), seq_len=64)
    values = evaluate_model(teacher, dataset, batch_sequences=4).values
    acceptance, bound = (float(values[name].mean(dtype=np.float64)) for name in ("acceptance", "kl_bound"))
    assert accepted - lost < acceptance < accepted + 1e-4
    assert bound < above
    model, models = tmp_path / "model", (("same", tmp_path / "model"),)
    teacher.save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    make_report(ReportConfig(casks=(cask,), models=models, output=tmp_path / "out"))
    assert ("keep a byte for a probability" in (tmp_path / "out" / "report.md").read_text()) == codec.startswith("u8")
