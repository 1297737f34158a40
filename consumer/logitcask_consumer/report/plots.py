"""The report's plots: each is written as a PNG file and given back as SVG, for the page."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from logitcask_consumer.report.series import COLOURS, INSIDE, Look, add_legend, looks, shortened

INK, GRID, TEACHER = "#22272e", "#d8dee6", "#8a94a3"
_STYLE: Any = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "logitcask",  # ids do not differ from one report to the next
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "xtick.color": INK,
    "ytick.color": INK,
}

_HEADLINES: Final = (
    (("kl", "kl_bound"), "KL to the teacher", "nats per token, less is better", "{:.2f}"),
    (("agreement",), "Same top token", "share of positions, more is better", "{:.1%}"),
    (("acceptance", "greedy_acceptance"), "Acceptance as a draft", "share of drafts, more is better", "{:.1%}"),
)
"""A panel each: its metrics, of which the first that is known is shown, its title, its unit, the form of its values."""


def headlines(path: Path, document: dict[str, Any]) -> str:
    """What the report comes to: a panel for each of three figures, in it a bar for each model with its interval.

    Args:
        path: the file to write.
        document: the report, with a model that has the teacher's tokenizer; others are not in the plot.

    Returns:
        The plot as SVG.
    """
    models, kinds = [model for model in document["models"] if model["metrics"]], document["kinds"]
    panels = [
        (measured[0], *words) for names, *words in _HEADLINES if (measured := [name for name in names if name in kinds])
    ]
    places = np.arange(len(models))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 1.5 + 0.42 * len(models)), layout="constrained")
        rows = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        for axes, (name, title, unit, form) in zip(rows[0], panels, strict=True):
            estimates = [model["metrics"][name] for model in models]
            lows, values, highs = (
                np.array([_end(estimate, end) for estimate in estimates]) for end in ("low", "value", "high")
            )
            ends = np.abs(np.stack([lows, highs]) - values)
            colours = [look.colour for look in looks(len(models))]
            axes.barh(places, values, xerr=ends, color=colours, height=0.62, ecolor=INK, alpha=0.85)
            farthest = max([1e-9, *highs[np.isfinite(highs)]])
            for place, value, high in zip(places, values, highs, strict=True):
                words = (form.format(value), high) if np.isfinite(value) else ("no number", 0.0)
                axes.text(max(0.0, words[1]) + 0.03 * farthest, place, words[0], va="center", fontsize=9)
            bound = ", at least" if kinds[name] == "lower bound" else ""
            axes.set_title(title + bound)
            axes.set_xlabel(unit, fontsize=8)
            if "%" in form:
                axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_xlim(min([0.0, *lows[np.isfinite(lows)]]), 1.3 * farthest)
            axes.grid(visible=False, axis="y")
            axes.set_ylim(len(models) - 0.4, -0.6)
            axes.set_yticks(places, [shortened(model["label"]) for model in models])
        return _saved(figure, path)


def _end(estimate: dict[str, float | None], end: str) -> float:
    """The value or an end of its interval; a single document gives no interval."""
    number = estimate["value"] if estimate[end] is None else estimate[end]
    return float("nan") if number is None else number


_MARK_HEIGHT: Final = 0.06
"""Of a line of text beside a plot, as a share of the plot's height."""


def _apart(heights: dict[str, float]) -> dict[str, float]:
    """Heights of marks beside a plot, each as near to its own as the others let it: none is written over another."""
    places, lowest = dict[str, float](), -np.inf
    for label in sorted(heights, key=lambda label: (heights[label], label)):
        places[label] = max(heights[label], lowest + _MARK_HEIGHT)
        lowest = places[label]
    highest = 1.0 + _MARK_HEIGHT
    for label in reversed(places):
        places[label] = highest = min(places[label], highest - _MARK_HEIGHT)
    return places


def loss_curve(path: Path, logs: Sequence[tuple[str, list[dict[str, Any]]]], held_out: dict[str, float]) -> str:
    """Training loss over positions seen, one line per run, smoothed over the raw values; held-out values as marks.

    Args:
        path: the file to write.
        logs: label and lines of metrics.jsonl of each run.
        held_out: model label -> held-out value of the same quantity; of many the lowest and the highest are named.

    Returns:
        The plot as SVG.
    """
    name, title = _curve_metric(logs)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        curves = list[tuple[str, Any]]()
        # A run has the colour of the model of its name, as the other plots show it.
        named = list(dict.fromkeys([*held_out, *(label for label, _ in logs)]))
        of_name = dict(zip(named, looks(len(named)), strict=True))
        for label, lines in logs:
            look = of_name[label]
            positions = np.array([line["positions"] for line in lines])
            seen = np.cumsum(positions)
            values = np.array([line[name] for line in lines])
            axes.plot(seen, values, color=look.colour, alpha=0.25, linewidth=1)
            (curve,) = axes.plot(
                seen, _smoothed(values, positions), color=look.colour, linestyle=look.line, linewidth=2
            )
            curves.append((label, curve))
        lowest = min(line[name] for _, lines in logs for line in lines)
        told = set(held_out)
        if len(held_out) > INSIDE:
            told = {min(held_out, key=held_out.__getitem__), max(held_out, key=held_out.__getitem__)}
        # A model that says what the teacher says has a KL of 0, give or take: nowhere on a logarithmic axis.
        # Nor is one below it, as the KL of a step may be by rounding.
        inside = {label: value for label, value in held_out.items() if value > max(lowest, 0.0) / 100}
        for value in inside.values():
            axes.axhline(value, color=TEACHER, linestyle=(0, (4, 3)), linewidth=1)
        axes.set(title=title, xlabel="positions trained on", ylabel="nats per token, logarithmic", yscale="log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        to_axes = axes.transData + axes.transAxes.inverted()  # only now: it is that of these limits and this scale
        wished = {label: to_axes.transform((0, inside[label]))[1] if label in inside else 0.03 for label in told}
        for label, height in _apart(wished).items():
            words = f"{shortened(label)}, held out: {held_out[label]:.2f}"
            axes.text(1.01, height, words, transform=axes.transAxes, ha="left", va="center", fontsize=9)
        add_legend(figure, axes, curves, inside="lower left")
        return _saved(figure, path)


def captured_mass(path: Path, cumulative_PK: NDArray[np.float32], entries_P: NDArray[np.float32]) -> str:
    """How much of the teacher's mass the k largest stored entries hold, and how many entries positions need.

    Args:
        path: the file to write.
        cumulative_PK: exact mass of the first k head entries of each position, k = 1..K.
        entries_P: head entries plus draws of each position.

    Returns:
        The plot as SVG.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        k = np.arange(1, cumulative_PK.shape[1] + 1)
        p5, p25, p50, p75, p95 = np.quantile(cumulative_PK, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
        left.fill_between(k, p5, p95, color=COLOURS[1], alpha=0.08, linewidth=0, label="5 % to 95 % of positions")
        left.fill_between(k, p25, p75, color=COLOURS[1], alpha=0.16, linewidth=0, label="25 % to 75 %")
        left.plot(k, p50, color=COLOURS[1], linewidth=1.2, linestyle=(0, (4, 2)), label="median")
        left.plot(k, cumulative_PK.mean(0), color=COLOURS[1], linewidth=2.2, label="mean")
        left.set(title="Mass held by the k largest entries", xlabel="k", ylabel="probability", ylim=(0, 1.02))
        left.set_xlim(1, max(2, k[-1]))
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.legend(loc="lower right")
        top = int(entries_P.max())
        right.hist(entries_P, bins=np.arange(0.5, top + 1.5), color=COLOURS[1], alpha=0.85)
        right.axvline(float(entries_P.mean()), color=COLOURS[0], linewidth=1.5)
        right.annotate(
            f"mean {entries_P.mean():.1f}",
            (float(entries_P.mean()), 1),
            (5, -4),
            ("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color=COLOURS[0],
        )
        right.set(title="Entries per position", xlabel="head entries and draws", ylabel="positions")
        return _saved(figure, path)


def entropy(path: Path, entropy_P: NDArray[np.float32], buckets: Sequence[dict[str, Any]]) -> str:
    """Distribution of the teacher's entropy, and where students differ from it.

    Args:
        path: the file to write.
        entropy_P: H(t) of each position, nats.
        buckets: of `by_bucket`, by entropy.

    Returns:
        The plot as SVG.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.hist(entropy_P, bins=40, color=COLOURS[1], alpha=0.85)
        left.axvline(float(entropy_P.mean()), color=COLOURS[0], linewidth=1.5)
        left.annotate(
            f"mean {entropy_P.mean():.2f}",
            (float(entropy_P.mean()), 1),
            (5, -4),
            ("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color=COLOURS[0],
        )
        left.set(title="Teacher entropy", xlabel="nats", ylabel="positions")
        _models_over(figure, right, [bucket["entropy"] for bucket in buckets], buckets)
        right.set(title="KL to the teacher by its entropy", xlabel="teacher entropy, nats", ylabel="nats per token")
        return _saved(figure, path)


def frequency(path: Path, buckets: Sequence[dict[str, Any]]) -> str:
    """How students differ from the teacher at rare and at frequent tokens.

    Args:
        path: the file to write.
        buckets: of `by_bucket`, by occurrences of the realised token.

    Returns:
        The plot as SVG.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.9), layout="constrained")
        axes = figure.add_subplot()
        places = list(range(len(buckets)))
        _models_over(figure, axes, places, buckets)
        axes.set_xticks(places, [f"{bucket['low']:,} to {bucket['high']:,}" for bucket in buckets])
        axes.set(title="KL to the teacher by frequency of the real token", ylabel="nats per token")
        axes.set_xlabel("positions of this report with the same token")
        return _saved(figure, path)


def task_accuracies(path: Path, document: dict[str, Any]) -> str:
    """Right answers of teacher and models in each task, plain and perturbed, with what guesses would reach.

    Args:
        path: the file to write.
        document: the report, with tasks.

    Returns:
        The plot as SVG.
    """
    tasks = document["tasks"]
    rows = [(task, kind) for task in tasks["sets"] for kind in (None, *task["changed"])]
    models = document["models"]
    asked = [(model["label"], model["tasks"], look) for model, look in zip(models, looks(len(models)), strict=True)]
    if tasks["teacher"] is not None:
        asked.insert(0, ("teacher", tasks["teacher"], Look(TEACHER, "-", "o")))
    with mpl.rc_context(_STYLE):
        height = 1.4 + len(rows) * (0.2 + 0.14 * len(asked))
        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.add_subplot()
        handles = list[tuple[str, Any]]()
        for number, (label, scores, look) in enumerate(asked):
            places = np.arange(len(rows)) + 0.7 * ((number + 0.5) / len(asked) - 0.5)
            of_model = [scores[task["name"]] for task, _ in rows]
            shares = [
                (score if kind is None else score["perturbed"][kind])["accuracy"]
                for score, (_, kind) in zip(of_model, rows, strict=True)
            ]
            values = np.array([share["value"] for share in shares])
            ends = np.abs(np.array([[share["low"] for share in shares], [share["high"] for share in shares]]) - values)
            points = axes.errorbar(
                values, places, xerr=ends, fmt=look.mark, color=look.colour, markersize=4, linewidth=1.4
            )
            handles.append((label, points))
        for place, (task, _) in enumerate(rows):
            if task["chance"] is not None:
                axes.vlines(task["chance"], place - 0.42, place + 0.42, color=INK, linestyle=(0, (2, 2)), linewidth=1)
        names = [task["name"] if kind is None else f"with {kind}" for task, kind in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set(title="Right answers (dashed: by chance)", xlabel="share of the questions", xlim=(-0.02, 1.02))
        axes.grid(visible=False, axis="y")
        add_legend(figure, axes, handles, inside=None)
        return _saved(figure, path)


def _models_over(figure: Any, axes: Any, x: Sequence[float], buckets: Sequence[dict[str, Any]]) -> None:
    """A line for each model over the buckets; of a few models with their intervals, where all buckets have one."""
    labels, handles = list(buckets[0]["models"]), list[tuple[str, Any]]()
    for look, label in zip(looks(len(labels)), labels, strict=True):
        estimates = [bucket["models"][label] for bucket in buckets]
        values = [kl["value"] for kl in estimates]
        (line,) = axes.plot(x, values, color=look.colour, linestyle=look.line, marker=look.mark, linewidth=2)
        handles.append((label, line))
        has_intervals = all(kl["low"] is not None and kl["high"] is not None for kl in estimates)
        if has_intervals and len(labels) <= INSIDE:
            bounds = [[kl[end] for kl in estimates] for end in ("low", "high")]
            axes.fill_between(x, *bounds, color=look.colour, alpha=0.15, linewidth=0)
    # An estimate of a KL of nothing may be a little below it.
    axes.set_ylim(bottom=min([0.0, *(kl["value"] for bucket in buckets for kl in bucket["models"].values())]))
    if labels:
        add_legend(figure, axes, handles)


def _saved(figure: Figure, path: Path) -> str:
    """Write a plot as PNG; the same as SVG. Within the style, which says how text is kept."""
    figure.savefig(path)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()


def _curve_metric(logs: Sequence[tuple[str, list[dict[str, Any]]]]) -> tuple[str, str]:
    """KL where every run has it, else the distillation loss."""
    if all("kl" in line for _, lines in logs for line in lines):
        return "kl", "KL to the teacher while training"
    return "kd", "Distillation loss while training"


def _smoothed(values: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred running mean per position over a twentieth of the curve; at its ends over what there is of that."""
    width = max(1, len(values) // 20) | 1
    window = np.ones(width)

    def sums(terms: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.convolve(np.pad(terms, width // 2), window, mode="valid")

    return sums(values * positions) / sums(positions)
