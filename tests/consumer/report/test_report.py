"""The report against dense truth: every metric, its kind, its interval; and the files it leaves."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from logitcask_consumer.cli.report import app
from logitcask_consumer.data import CaskDataset, open_casks
from logitcask_consumer.report import estimates
from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.estimates import DocumentBootstrap
from logitcask_consumer.report.evaluate import evaluate_model, evaluate_teacher, measure, teacher_columns
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.report.markdown import models_table, short_table
from logitcask_consumer.report.plots import _smoothed, loss_curve
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    build_cask,
    dense_positions,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)
from tests.support.consumer.reference_sampler import head_rule, random_positions, sample, to_target

ROWS, VOCAB, POINTS = 5, 60, 400


def student_logits():
    return torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2


def truth(dense, logits):
    t, p = dense.probs_RV, torch.softmax(logits, -1).numpy()
    best = p.argmax(1)
    return {
        "kl": (t * np.log(t / p)).sum(1),
        "nll": -np.log(p[np.arange(ROWS), dense.next_ids_R]),
        "agreement": best == t.argmax(1),
        "acceptance": np.minimum(t, p).sum(1),
        "greedy_acceptance": t[np.arange(ROWS), best],
        "confidence": p.max(1),
        "correct": best == dense.next_ids_R,
    }


def tail_logprobs(columns, dense):
    rows = np.repeat(np.arange(len(columns.tail_ids)), [len(x) for x in columns.tail_ids])
    return torch.from_numpy(np.log(dense.probs_RV[rows, np.concatenate(columns.tail_ids).astype(int)]))


def over_u_grid(dense, logits, *, with_tail, points=POINTS, **spec):
    """Mean of every metric over a midpoint grid of u, [ROWS] each."""
    every = type(dense)(np.tile(dense.probs_RV, (points, 1)), np.tile(dense.next_ids_R, points))
    columns = sample(every, np.repeat((np.arange(points) + 0.5) / points, ROWS), **spec)
    tail = tail_logprobs(columns, every) if with_tail else None
    target = to_target(columns, every.next_ids_R, sampled_tail=spec.get("mode") != "topk")
    entropy_R = torch.from_numpy(every.entropy_R)
    measured = measure(logits.repeat(points, 1), target, entropy_R, tail, rule=head_rule(**spec))
    return {name: value.numpy().reshape(points, ROWS).mean(0) for name, value in measured.items()}


@pytest.mark.parametrize("with_tail", [True, False])
@pytest.mark.parametrize("spec", [{}, {"mode": "sampled", "draws": 6}, {"tau": 0.2}], ids=str)
def test_metrics_are_unbiased_or_exact(spec, with_tail):
    dense, logits = random_positions(ROWS, VOCAB, sharpness=1.5), student_logits()
    expected, got = truth(dense, logits), over_u_grid(dense, logits, with_tail=with_tail, **spec)
    np.testing.assert_allclose(got["kl"], expected["kl"], rtol=1e-2)
    for name in ("nll", "confidence", "correct"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-9)
    if spec.get("mode") != "sampled":
        np.testing.assert_array_equal(got["agreement"], expected["agreement"])
    np.testing.assert_allclose(got["greedy_acceptance"], expected["greedy_acceptance"], atol=2e-3)
    assert (got["acceptance_low"] <= expected["acceptance"] + 1e-9).all()
    assert (got["acceptance_high"] >= expected["acceptance"] - 1e-9).all()
    assert (got["acceptance_high"] > expected["acceptance"] + 1e-3).any(), "the bracket's end is no estimate"
    if with_tail:
        np.testing.assert_allclose(got["acceptance"], expected["acceptance"], rtol=1e-2)
        np.testing.assert_allclose(got["tvd"], 1 - got["acceptance"], atol=1e-12)
    else:
        assert not {"acceptance", "tvd"} & got.keys(), "without log t of the draws there is no estimate"
    assert (got["kl_bound"] <= expected["kl"] + 1e-9).all()


def test_metrics_of_a_whole_head_are_exact():
    dense, logits = random_positions(ROWS, VOCAB), student_logits()
    expected = truth(dense, logits)
    got = over_u_grid(dense, logits, with_tail=False, points=1, tau=1e-12, head_max=VOCAB)
    for name in expected:
        for measured in [name] if name != "acceptance" else ["acceptance_low", "acceptance_high"]:
            np.testing.assert_allclose(got[measured], expected[name], atol=1e-9)
    np.testing.assert_allclose(got["kl_bound"], expected["kl"], atol=1e-9)
    np.testing.assert_allclose(got["tail_error"], 0, atol=1e-9)


def test_topk_bounds_kl_and_acceptance():
    dense, logits = random_positions(ROWS, VOCAB), student_logits()
    expected = truth(dense, logits)
    got = over_u_grid(dense, logits, with_tail=False, points=1, mode="topk", k=5)
    assert (got["kl_bound"] < expected["kl"]).all()
    assert (got["acceptance_high"] >= expected["acceptance"]).all()
    assert (got["acceptance_low"] <= expected["acceptance"]).all()
    assert (got["greedy_acceptance"] <= expected["greedy_acceptance"] + 1e-12).all()


def test_negative_control_a_renormalised_head_overstates_kl():
    """What a store without tail mass would report: KL between renormalised heads is no estimate of the KL."""
    dense, logits = random_positions(ROWS, VOCAB, sharpness=1.5), student_logits()
    columns = sample(dense, np.zeros(ROWS), mode="topk", k=5)
    logp = torch.log_softmax(logits, -1).numpy()
    wrong = [
        (q := p / p.sum()) @ (np.log(q) - logp[row, ids])
        for row, (ids, p) in enumerate(zip(columns.head_ids, columns.head_probs, strict=True))
    ]
    assert abs(np.mean(wrong) - truth(dense, logits)["kl"].mean()) > 0.1


def test_the_teacher_measured_as_a_student_is_perfect(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    spec = CaptureSpec(tail_logprobs=True, logprob_codec="f32")
    cask = build_cask(tmp_path / "cask", teacher, random_documents(10), spec=spec)
    dataset = CaskDataset(open_casks([cask], tokenizer_fingerprint=None), seq_len=64)
    own = evaluate_teacher(dataset, batch_sequences=2)
    columns = evaluate_model(teacher, dataset, batch_sequences=2)
    assert (columns.documents_P == own.documents_P).all()
    np.testing.assert_allclose(columns.values["kl"], 0, atol=2e-5)
    np.testing.assert_allclose(columns.values["nll"], own.values["nll"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(columns.values["acceptance"], 1, atol=1e-4)
    np.testing.assert_allclose(columns.values["tail_error"], 0, atol=1e-5)
    assert columns.values["agreement"].all()


def test_teacher_columns_come_from_the_record():
    dense = random_positions(ROWS, VOCAB)
    columns = sample(dense, np.full(ROWS, 0.3))
    logprobs_H = torch.from_numpy(np.log(np.concatenate(columns.head_probs)))
    own = teacher_columns(to_target(columns, dense.next_ids_R), torch.from_numpy(dense.entropy_R), logprobs_H)
    rows = np.arange(ROWS)
    np.testing.assert_allclose(own["nll"], -np.log(dense.probs_RV[rows, dense.next_ids_R]))
    np.testing.assert_allclose(own["confidence"], dense.probs_RV.max(1))
    np.testing.assert_array_equal(own["correct"], dense.probs_RV.argmax(1) == dense.next_ids_R)
    np.testing.assert_allclose(own["captured"], 1 - np.array(columns.tail_mass))
    entries = [len(h) + len(t) for h, t in zip(columns.head_ids, columns.tail_ids, strict=True)]
    np.testing.assert_array_equal(own["entries"], entries)


@pytest.mark.parametrize("codec", ["u8", "u8all"])
@pytest.mark.parametrize("spec", [CaptureSpec(mode="sampled", draws=8), CaptureSpec(tau=0.5, head_max=1)])
def test_the_teachers_loss_survives_coarse_codecs(tmp_path, codec, spec):
    """An unlikely token alone in its head: the mass of the tail, a byte, is rounded to 1, and leaves it possible."""
    teacher, documents = save_teacher(tmp_path / "teacher"), random_documents(10)
    coarse = spec.model_copy(update={"logprob_codec": codec})
    cask = Cask.open(build_cask(tmp_path / "cask", teacher, documents, spec=coarse))
    dataset = CaskDataset([cask], seq_len=64)
    own = evaluate_teacher(dataset, batch_sequences=2).values
    dense = [dense_positions(teacher, cask.read(number).token_ids_L) for number in range(len(cask))]
    expected = np.concatenate(
        [-np.log(each.probs_RV[np.arange(len(each.next_ids_R)), each.next_ids_R]) for each in dense]
    )
    assert expected.max() > 10
    # A step of the codec is half a nat where log t is below -8, and its last is at -23.5.
    expected = np.minimum(expected, 23.5)
    np.testing.assert_allclose(own["nll"], expected, atol=0.51)
    assert own["nll"].mean() == pytest.approx(expected.mean(), abs=0.1)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Documents of differing difficulty: intervals over documents cover, intervals over positions would not."""
    rng, covered, naive, trials = np.random.default_rng(0), 0, 0, 200
    for trial in range(trials):
        sizes = rng.integers(5, 40, 60)
        documents = np.repeat(np.arange(60), sizes).astype(np.int32)
        values = (rng.normal(size=60)[documents] + rng.normal(size=len(documents)) + 1.0).astype(np.float32)
        found: Any = DocumentBootstrap(documents, seed=trial, resamples=500).mean(values)
        covered += found.low <= 1.0 <= found.high
        error = 1.96 * values.std() / np.sqrt(len(values))
        naive += abs(values.mean() - 1.0) <= error
    assert 0.88 <= covered / trials <= 0.99
    assert naive / trials < 0.7


def test_paired_differences_are_tighter_than_unpaired_ones():
    rng = np.random.default_rng(1)
    documents = np.repeat(np.arange(30), 20).astype(np.int32)
    before = (rng.normal(size=30)[documents] * 3).astype(np.float32)
    after = before - 0.5 + rng.normal(size=len(documents)).astype(np.float32) * 0.1
    bootstrap: Any = DocumentBootstrap(documents)
    change = bootstrap.difference(after, before)
    assert change.low < -0.5 < change.high
    assert change.high - change.low < 0.1 < bootstrap.mean(before).high - bootstrap.mean(before).low


def test_calibration_error():
    documents = np.repeat(np.arange(100), 100).astype(np.int32)
    rng = np.random.default_rng(2)
    confidence = rng.random(len(documents)).astype(np.float32)
    calibrated = (rng.random(len(documents)) < confidence).astype(np.float32)
    bootstrap = DocumentBootstrap(documents)
    assert bootstrap.calibration_error(confidence, calibrated).value < 0.03
    assert bootstrap.calibration_error(confidence, np.zeros_like(confidence)).value == pytest.approx(0.5, abs=0.02)


def test_resamples_in_blocks_are_those_in_one(monkeypatch):
    """Against the multinomial times, in float64 and at once."""
    rng = np.random.default_rng(4)
    documents = np.repeat(np.arange(37), rng.integers(1, 9, 37)).astype(np.int32)
    values = rng.normal(size=len(documents)).astype(np.float32)
    times = np.random.default_rng(5).multinomial(37, np.full(37, 1 / 37), size=300).astype(np.float64)
    sums, sizes = np.bincount(documents, weights=values), np.bincount(documents)
    means = (times @ sums) / (times @ sizes)
    for numbers in (1, 370, 2**22):
        monkeypatch.setattr(estimates, "_BLOCK_NUMBERS", numbers)
        found: Any = DocumentBootstrap(documents, seed=5, resamples=300).mean(values)
        assert [found.low, found.high] == pytest.approx(list(np.quantile(means, [0.025, 0.975])), rel=1e-12)
        assert found.standard_error == pytest.approx(means.std(ddof=1), rel=1e-12)


def test_resamples_of_many_documents_take_a_byte_each():
    tracemalloc.start()
    bootstrap = DocumentBootstrap(np.arange(20_000, dtype=np.int32))
    bootstrap.mean(np.ones(20_000, dtype=np.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * 20_000 * 4  # in float64 they alone would take twice that


def test_a_single_document_has_no_interval():
    found = DocumentBootstrap(np.zeros(5, dtype=np.int32)).mean(np.arange(5, dtype=np.float32))
    assert (found.value, found.low, found.high) == (2.0, None, None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    teacher = save_teacher(folder / "teacher")
    build_cask(folder / "cask", teacher, random_documents(12, seed=5), spec=CaptureSpec(tail_logprobs=True))
    build_cask(folder / "topk", teacher, random_documents(6), spec=CaptureSpec(mode="topk", k=5))
    build_cask(folder / "sampled", teacher, random_documents(6), spec=CaptureSpec(mode="sampled", draws=5))
    tiny_model(seed=9).save_pretrained(folder / "student")
    tiny_tokenizer().save_pretrained(folder / "student")
    (folder / "log").mkdir()
    lines = [{"step": i, "kl": 5 / i, "kd": 6 / i, "ce": 7 / i, "positions": 100.0} for i in range(1, 30)]
    (folder / "log" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("held_out", [{"same": 0.0}, {"same": -1e-4, "close": 1e-9}, {"other": 2.5, "same": 1e-30}])
def test_held_out_values_that_a_logarithmic_axis_has_no_place_for(tmp_path, held_out):
    """A model that is the teacher has a KL of 0, or a little less by its draws."""
    lines = [{"positions": 10, "kl": 5.0 / step} for step in (1, 2, 3)]
    loss_curve(tmp_path / "curve.png", [("run", lines)], held_out)  # warnings are errors
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_command_writes_markdown_json_and_plots(place, tmp_path):
    arguments = ["--cask", place / "cask", "--model", f"student={place / 'student'}"]
    arguments += ["--model", f"all layers={place / 'teacher'}"]
    arguments += ["--train-log", place / "log", "--output", tmp_path / "out"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "out" / "report.json").read_text())
    student, same = (model["metrics"] for model in document["models"])
    assert student["kl"]["low"] < student["kl"]["value"] < student["kl"]["high"]
    assert 0 < student["tvd"]["standard_error"] < student["tvd"]["value"] < 1
    assert student["tvd"]["value"] == pytest.approx(1 - student["acceptance"]["value"], rel=1e-5)
    assert same["entropy"]["value"] == pytest.approx(document["teacher"]["entropy"]["value"], rel=1e-2)
    assert same["kl"]["value"] == pytest.approx(0, abs=1e-3)
    assert same["perplexity"]["value"] == pytest.approx(document["teacher"]["perplexity"]["value"], rel=1e-2)
    assert document["kinds"]["acceptance"] == "unbiased"
    assert document["change"]["metrics"]["kl"]["value"] == pytest.approx(same["kl"]["value"] - student["kl"]["value"])
    text = (tmp_path / "out" / "report.md").read_text()
    for expected in ("| KL to the teacher, nats/token (unbiased) | 0.0000 |", "all layers", "bytes per token"):
        assert expected in text
    shown_in_order = (
        "(headlines.png)", "(loss_curve.png)", "| KL to the teacher", "## Where they differ", "(entropy.png)",
        "(frequency.png)", "## Records", "(captured_mass.png)",
    )  # fmt: skip
    places = [text.index(part) for part in shown_in_order]
    assert places == sorted(places)
    for name in ("headlines.png", "loss_curve.png", "captured_mass.png", "entropy.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    shown = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert "perplexity" in shown.stdout


@pytest.mark.parametrize(
    ("cask", "kinds"),
    [
        (
            "topk",
            {
                "kl_bound": "lower bound",
                "greedy_acceptance": "lower bound",
                "agreement": "exact",
                "top5_agreement": "exact",
            },
        ),
        ("sampled", {"kl": "unbiased", "kl_bound": "lower bound", "greedy_acceptance": "unbiased"}),
    ],
)
def test_other_modes_say_what_their_numbers_are(place, tmp_path, cask, kinds):
    models = (("student", place / "student"),)
    document = make_report(ReportConfig(casks=(place / cask,), models=models, output=tmp_path / "out"))
    exact = {"nll", "perplexity", "entropy", "tail_error", "accuracy", "calibration_error"}
    assert document["kinds"] == kinds | dict.fromkeys(exact, "exact")
    assert ("accuracy" in document["teacher"]) == (cask == "topk")
    bracket = document["models"][0]["acceptance_bracket"]
    assert 0 <= bracket["low"] < bracket["high"] <= 1
    assert "is not measured" in (tmp_path / "out" / "report.md").read_text()
    assert "change" not in document


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "a="], "'a=': expected label=folder"),
        (["--model", "=student"], "'=student': expected label=folder"),
        (["--model", ""], "'': expected label=folder"),
        (["--model", "a=student", "--train-log", "b="], "'b=': expected label=folder"),
        (["--model", "a=student", "-o", ""], "is empty; was a variable of the shell not set?"),
    ],
)
def test_empty_names_are_refused_before_anything_is_made(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "student").mkdir()
    result = CliRunner().invoke(app, ["--cask", "cask", "-o", "out", *options])
    assert result.exit_code == 2
    assert words in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_huge_numbers_have_three_digits():
    huge = {"value": 123456789.0, "low": 12345.678, "high": 1e300}
    document = {
        "kinds": {"perplexity": "exact", "kl": "exact"},
        "teacher": {"perplexity": {"value": 99_999.0, "low": None, "high": None}},
        "models": [{"label": "a", "metrics": {"perplexity": huge, "kl": {"value": 1.5, "low": 1.0, "high": 2.0}}}],
    }
    _, (kl, perplexity) = short_table(document)
    assert kl == ["KL to the teacher, nats/token", "0.0000", "1.5000 ± 0.5000"]
    assert perplexity == ["perplexity", "99,999.00", "1.23e+08 ± 5.00e+299"]
    assert "| 99,999.00 | 1.23e+08 [12,345.68, 1.00e+300] |" in models_table(document)


def test_what_cannot_be_reported_is_refused(place, tmp_path):
    good = ReportConfig(casks=(place / "cask",), models=(("a", place / "student"),), output=tmp_path / "out")
    with pytest.raises(ReportError, match="no model"):
        make_report(ReportConfig(casks=good.casks, models=(), output=good.output))
    with pytest.raises(ReportError, match="labels"):
        make_report(ReportConfig(casks=good.casks, models=good.models * 2, output=good.output))
    with pytest.raises(ReportError, match="training log"):
        make_report(
            ReportConfig(casks=good.casks, models=good.models, train_logs=(("x", tmp_path),), output=good.output)
        )
    tiny_model().save_pretrained(tmp_path / "foreign")
    tiny_tokenizer("x").save_pretrained(tmp_path / "foreign")
    with pytest.raises(IdentityMismatchError, match="tokenizer of a"):
        make_report(ReportConfig(casks=good.casks, models=(("a", tmp_path / "foreign"),), output=good.output))
    assert not good.output.exists()


def test_the_smoothed_curve_is_a_mean_per_position_also_at_its_ends():
    """A last step that is small and bad must not bend the curve as if it were repeated beyond the end."""
    values, positions = np.r_[np.full(99, 2.0), 10.0], np.r_[np.full(99, 300.0), 30.0]
    smoothed = _smoothed(values, positions)
    assert smoothed[:97] == pytest.approx(2.0)
    assert smoothed[-1] == pytest.approx((2 * 300 * 2.0 + 30 * 10.0) / 630)
