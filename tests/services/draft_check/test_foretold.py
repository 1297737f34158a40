"""Shares of drafts that should be kept: dense, by loops, and out of a report; and the controls of the texts."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from logitcask_services.draft_check.controls import greedy_control, sampled_control
from logitcask_services.draft_check.foretold import Metric, accepted, metric_of, of_report, tokens_per_step
from logitcask_services.draft_check.speculation import DraftCheckError


def rows(seed, count=40, vocab=50):
    logits = np.random.default_rng(seed).normal(size=(count, vocab)) * 2
    return torch.log_softmax(torch.from_numpy(logits), -1)


def test_shares_are_those_of_the_definitions():
    log_t = rows(0)
    log_p = torch.log_softmax(log_t + rows(1), -1)
    t, p = log_t.exp().numpy(), log_p.exp().numpy()
    expected: dict[Metric, Any] = {
        "agreement": [float(a.argmax() == b.argmax()) for a, b in zip(t, p, strict=True)],
        "greedy_acceptance": [a[b.argmax()] for a, b in zip(t, p, strict=True)],
        "acceptance": [sum(min(x, y) for x, y in zip(a, b, strict=True)) for a, b in zip(t, p, strict=True)],
    }
    for metric, values in expected.items():
        np.testing.assert_allclose(accepted(log_t, log_p, metric), values, rtol=1e-12)
    assert 0 < np.mean(expected["agreement"]) < 1
    assert metric_of(0, sampled=False) == "agreement"
    assert metric_of(1, sampled=False) == "greedy_acceptance"
    assert metric_of(1, sampled=True) == "acceptance"


def test_tokens_of_a_step_are_what_independent_drafts_give():
    kept = np.random.default_rng(0).random((200_000, 4)) < 0.4
    tokens = 1 + np.cumprod(kept, axis=1).sum(1)
    assert tokens_per_step(0.4, 4) == pytest.approx(tokens.mean(), rel=0.01)
    assert tokens_per_step(1.0, 4) == 5
    assert tokens_per_step(0.0, 4) == 1


REPORT = {
    "format": "logitcask-report",
    "version": 1,
    "models": [
        {
            "label": "before",
            "metrics": {"agreement": {"value": 0.1, "standard_error": 0.01, "low": 0.08, "high": 0.12}},
            "brackets": {"acceptance": {"low": 0.2, "high": 0.6}},
        },
        {"label": "after", "metrics": {}},
    ],
}


@pytest.fixture
def report(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    return tmp_path


def test_a_report_foretells_with_its_interval_or_between_two_ends(report):
    foretold = of_report(report, "before", "agreement")
    assert (foretold.value, foretold.low, foretold.high) == (0.1, 0.08, 0.12)
    assert foretold.source == "agreement of before in report.json"
    foretold = of_report(report / "report.json", "before", "acceptance")
    assert (foretold.value, foretold.low, foretold.high) == (None, 0.2, 0.6)


@pytest.mark.parametrize(("kind", "value"), [("lower bound", None), ("unbiased", 0.3)])
def test_a_bound_foretells_nothing_beside_two_ends(tmp_path, kind, value):
    metric = {"value": 0.3, "standard_error": 0.01, "low": 0.28, "high": 0.32}
    model = {"label": "x", "metrics": {"acceptance": metric}, "brackets": {"acceptance": {"low": 0.3, "high": 0.7}}}
    (tmp_path / "report.json").write_text(json.dumps({**REPORT, "kinds": {"acceptance": kind}, "models": [model]}))
    foretold = of_report(tmp_path, None, "acceptance")
    assert foretold.value == value
    assert (foretold.low, foretold.high) == ((0.3, 0.7) if value is None else (0.28, 0.32))


@pytest.mark.parametrize(
    ("label", "metric", "message"),
    [
        (None, "agreement", "has before, after; say which with --label"),
        ("x", "agreement", "has no model 'x'; it has before, after"),
        ("after", "agreement", "says nothing of agreement for after"),
        ("before", "greedy_acceptance", "says nothing of greedy_acceptance"),
    ],
)
def test_what_a_report_does_not_say_is_told(report, label, metric, message):
    with pytest.raises(DraftCheckError, match=message):
        of_report(report, label, metric)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "is no report.json"),
        ("[]", "no report"),
    ],
)
def test_what_is_no_report_is_told(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(DraftCheckError, match=message):
        of_report(tmp_path, None, "agreement")


def test_a_report_on_several_teachers_names_the_folders_of_each(tmp_path):
    parts = [{"folder": "math", "label": "math"}, {"folder": "code", "label": "code"}]
    (tmp_path / "report.json").write_text(json.dumps({"format": "logitcask-reports", "teachers": parts}))
    with pytest.raises(DraftCheckError) as told:
        of_report(tmp_path, None, "agreement")
    assert str(told.value).endswith(
        f"is of several teachers; name the folder of this one's: {tmp_path / 'math'}, {tmp_path / 'code'}"
    )


def excesses(said, true, seed=0):
    """-log t less H(t) of tokens that were sampled from `said`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.multinomial(said.exp(), 1, generator=generator)
    return (-true.gather(1, tokens)[:, 0] - torch.special.entr(true.exp()).sum(-1)).numpy()


def test_text_that_is_sampled_from_the_teacher_passes_and_other_text_does_not():
    true = rows(0, count=2000)
    documents = np.repeat(np.arange(20), 100)
    right = [sampled_control(excesses(true, true, seed), documents) for seed in range(20)]
    assert all(control.passed for control in right)
    # A student's own text, and text that is sharper than the teacher: what accepting too many drafts gives.
    for said in (torch.log_softmax(true + 0.5 * rows(1, count=2000), -1), torch.log_softmax(true * 1.3, -1)):
        wrong = sampled_control(excesses(said, true), documents)
        assert not wrong.passed
        assert abs(wrong.value) > 0.05
        assert "nats from the teacher's entropy" in wrong.says
    assert not sampled_control(excesses(true, true), np.zeros(2000, np.int64)).passed  # one text tells nothing


def test_text_of_most_likely_tokens_passes_but_for_ties():
    gaps = np.zeros(1000)
    gaps[:50] = 0.01
    assert greedy_control(gaps).passed
    gaps[:11] = 0.5
    failed = greedy_control(gaps)
    assert not failed.passed
    assert failed.value == pytest.approx(0.989)
    assert failed.says.startswith("98.90% of the written tokens")


FIGURE = {"value": 0.1, "low": 0.0, "high": 0.2}
MODEL = {"label": "x", "metrics": {"agreement": FIGURE}, "brackets": {}}


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"models": None}, "models"),
        ({"models": {"x": MODEL}}, "models"),
        ({"models": ["x"]}, "models.0"),
        ({"models": [{"metrics": {}}]}, "models.0.label"),
        ({"models": [{"label": "x"}]}, "models.0.metrics"),
        ({"models": [{**MODEL, "metrics": []}]}, "models.0.metrics"),
        ({"models": [{**MODEL, "brackets": None}]}, "models.0.brackets"),
        ({"models": [MODEL], "kinds": ["exact"]}, "kinds"),
        ({"models": [{**MODEL, "metrics": {"agreement": 0.1}}]}, "metrics.agreement"),
        ({"models": [{**MODEL, "metrics": {"agreement": {"value": 0.1}}}]}, "metrics.agreement.low"),
        ({"models": [{**MODEL, "metrics": {"agreement": {**FIGURE, "value": None}}}]}, "metrics.agreement.value"),
        ({"models": [{**MODEL, "metrics": {"agreement": {**FIGURE, "value": "0.1"}}}]}, "metrics.agreement.value"),
        ({"models": [{**MODEL, "metrics": {"agreement": {**FIGURE, "high": float("nan")}}}]}, "metrics.agreement.high"),
        ({"models": [{**MODEL, "metrics": {}, "brackets": {"agreement": {"low": 0}}}]}, "brackets.agreement.high"),
        ({"format": "logitcask-reports"}, "teachers"),
        ({"format": "logitcask-reports", "teachers": [{"label": "math"}]}, "teachers.0.folder"),
    ],
)
def test_a_damaged_report_is_told_by_the_place(tmp_path, changed, place):
    document = {"format": "logitcask-report", "version": 1, **changed}
    (tmp_path / "report.json").write_text(json.dumps(document))
    with pytest.raises(DraftCheckError, match=rf"report\.json is damaged, at `{place}`: .*\. Make the report again"):
        of_report(tmp_path, None, "agreement")


def test_a_report_of_one_document_foretells_without_an_interval(tmp_path):
    model = {**MODEL, "metrics": {"agreement": {"value": 1, "standard_error": None, "low": None, "high": None}}}
    (tmp_path / "report.json").write_text(json.dumps({**REPORT, "models": [model]}))
    foretold = of_report(tmp_path, None, "agreement")
    assert (foretold.value, foretold.low, foretold.high) == (1.0, None, None)
