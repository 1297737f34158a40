"""The plot on top of a report: the figures it shows are those of the document."""

import itertools
import re

import pytest

from logitcask_consumer.report import plots
from logitcask_consumer.report.series import looks, shortened

saved = plots._saved
UNBIASED = {"kl": "unbiased", "kl_bound": "lower bound", "agreement": "exact", "acceptance": "unbiased"}


def estimate(value, low=None, high=None):
    return {"value": value, "standard_error": None, "low": low, "high": high}


def model(label, kl, **others):
    metrics = {"kl": kl, "kl_bound": kl, "agreement": estimate(0.523), "acceptance": estimate(0.61, 0.5, 0.7)}
    return {"label": label, "metrics": metrics | others}


def words(svg):
    return re.findall(r"<text[^>]*>(.*?)</text>", svg)


def test_each_model_has_a_bar_in_each_panel_with_its_value(tmp_path):
    models = [model("before", estimate(6.812, 6.5, 7.1)), model("after", estimate(1.244, 1.1, 1.3))]
    shown = words(plots.headlines(tmp_path / "h.png", {"models": models, "kinds": UNBIASED}))
    assert [shown.count(text) for text in ("6.81", "1.24", "52.3%", "61.0%")] == [1, 1, 2, 2]
    assert [shown.count(text) for text in ("before", "after", "KL to the teacher", "Same top token")] == [1, 1, 1, 1]
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")


def test_bounds_are_told_as_such_and_figures_that_nobody_knows_have_no_panel(tmp_path):
    kinds = {"kl_bound": "lower bound", "greedy_acceptance": "lower bound"}
    bounded = {"label": "a", "metrics": {"kl_bound": estimate(0.5), "greedy_acceptance": estimate(0.25)}}
    shown = words(plots.headlines(tmp_path / "h.png", {"models": [bounded], "kinds": kinds}))
    assert "KL to the teacher, at least" in shown
    assert "Acceptance as a draft, at least" in shown
    assert "Same top token" not in shown


@pytest.mark.parametrize(
    "kl", [estimate(None), estimate(0.0), estimate(-0.002, -0.01, 0.003), estimate(1e9, 1.0, None)]
)
def test_odd_values_are_drawn(tmp_path, kl):
    shown = words(plots.headlines(tmp_path / "h.png", {"models": [model("m", kl)], "kinds": UNBIASED}))
    assert ("no number" in shown) == (kl["value"] is None)


def test_models_with_tokens_of_their_own_are_left_out_and_long_names_are_cut(tmp_path):
    models = [{"label": "own tokens", "metrics": {}}, model("a" * 100 + "z" * 100, estimate(1.0))]
    shown = words(plots.headlines(tmp_path / "h.png", {"models": models, "kinds": UNBIASED}))
    assert "own tokens" not in shown
    assert "a" * 13 + "…" + "z" * 14 in shown
    assert "a" * 14 not in "".join(shown)


THIRTY = [f"a student with a long name that all of them share, number {number}" for number in range(30)]


def test_thirty_models_have_looks_of_their_own_and_names_that_differ():
    assert len(set(looks(30))) == 30
    assert len(set(map(shortened, THIRTY))) == 30
    assert {len(shortened("x" * length)) for length in (28, 29, 30, 300)} == {28}
    assert shortened("short") == "short"


@pytest.mark.parametrize("count", [1, 6, 7, 30])
def test_the_models_of_a_plot_leave_room_for_its_lines(tmp_path, monkeypatch, count):
    """Matplotlib warns, and warnings are errors, where a legend leaves a plot none."""
    figures = []

    def kept(figure, path):
        figures.append(figure)
        return saved(figure, path)

    monkeypatch.setattr(plots, "_saved", kept)
    bucket = {"low": 1, "high": 2, "models": {label: estimate(1.0, 0.5, 2.0) for label in THIRTY[:count]}}
    shown = words(plots.frequency(tmp_path / "f.png", [bucket, {**bucket, "low": 3}]))
    assert [shown.count(shortened(label)) for label in THIRTY[:count]] == [1] * count
    lines = [{"positions": 10, "kl": 2.0 - step} for step in (0.0, 0.5)]
    held_out = {label: 1.0 + place / 10 for place, label in enumerate(THIRTY[:count])}
    shown = words(plots.loss_curve(tmp_path / "c.png", [(label, lines) for label in THIRTY[:count]], held_out))
    named = [label for label in held_out if f"{shortened(label)}, held out: {held_out[label]:.2f}" in shown]
    assert named == (THIRTY[:count] if count <= 6 else [THIRTY[0], THIRTY[count - 1]])
    for figure in figures:
        for axes in figure.axes:
            assert axes.get_window_extent().height > 0.4 * 3.9 * figure.dpi


@pytest.mark.parametrize(
    ("values", "last"),
    [([4.5, 4.51, 4.6, 13.8], 4.0), ([2.0] * 6, 4.0), ([1e-9, -1e-4, 3.0, 0.0], 4.0), ([1e-6, 0.0, -1e-9], -1e-5)],
)
def test_marks_of_models_that_are_alike_are_not_written_over_each_other(tmp_path, monkeypatch, values, last):
    figures = []
    monkeypatch.setattr(plots, "_saved", lambda figure, path: figures.append(figure))
    lines = [{"positions": 10, "kl": value} for value in (14.0, 7.0, last)]
    held_out = {f"model{place}": value for place, value in enumerate(values)}
    plots.loss_curve(tmp_path / "c.png", [("model0", lines)], held_out)
    (figure,) = figures
    figure.draw_without_rendering()
    marks = [text for text in figure.axes[0].texts if "held out" in text.get_text()]
    boxes = sorted((mark.get_window_extent() for mark in marks), key=lambda box: box.y0)
    assert len(boxes) == len(values)
    assert all(upper.y0 >= lower.y1 for lower, upper in itertools.pairwise(boxes))
    assert figure.bbox.y0 <= boxes[0].y0
    assert boxes[-1].y1 <= figure.bbox.y1
