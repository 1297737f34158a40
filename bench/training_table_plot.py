"""The training table as pictures: the share of the gap that is closed against bytes per token, and against steps."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter, ScalarFormatter

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
FAMILIES = {
    "threshold": ("tab:blue", "o"),
    "RS-KD": ("tab:green", "s"),
    "ghost": ("tab:orange", "^"),
    "renormalised": ("tab:red", "v"),
}


LABEL_PLACES = {
    "threshold 1/35 u8": (-18, 9),
    "threshold 1/50": (0, 10),
    "threshold head 1/20, draws 1/50": (8, -10),
    "threshold 1/100, up to 255 draws": (-12, 7),
    "threshold 1/150, up to 255 draws": (-12, 7),
}
"""In points, of rows whose neighbours lie too close for a label beside them."""
Curves = dict[str, dict[int, dict[int, float]]]
"""Held-out KL in nats: of each row, seed and step."""


def draw_curves(curves: Curves, name: str) -> None:
    """Write the plot of evaluations on the way: held-out KL, and the share of the gap that a record leaves open."""
    figure, (kl_axes, open_axes) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for number, (row, seeds) in enumerate(curves.items()):
        colour = f"C{number}"
        for order, (seed, by_step) in enumerate(seeds.items()):
            steps = sorted(by_step)
            label = row if order == 0 else None
            kl_axes.plot(steps, [by_step[step] for step in steps], color=colour, linewidth=1, label=label)
            if row in ("ce", "full") or seed not in curves["ce"] or seed not in curves["full"]:
                continue
            ce, full = curves["ce"][seed], curves["full"][seed]
            left_open = [100 * (by_step[step] - full[step]) / (ce[step] - full[step]) for step in steps]
            open_axes.plot(steps, left_open, color=colour, marker="o", markersize=3, linewidth=1, label=label)
    kl_axes.set_ylabel("held-out KL, nats")
    open_axes.set_ylabel("share of the gap between ce and full left open (%)")
    open_axes.axhline(0, color="grey", linewidth=0.8)
    for axes in (kl_axes, open_axes):
        axes.set_xlabel("steps")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / f"{name}.png", dpi=150)
    plt.close(figure)


def draw(runs: dict[str, dict[int, dict[str, float]]], name: str) -> None:
    """Write the plot: means, and small marks for seeds. Cross-entropy is 0 %, the dense KL 100 %."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for row, seeds in runs.items():
        family = next((style for prefix, style in FAMILIES.items() if row.startswith(prefix)), None)
        points = [
            (figures["bytes_per_token"], figures["gap closed (%)"])
            for figures in seeds.values()
            if "gap closed (%)" in figures
        ]
        if family is None or not points:
            continue
        colour, marker = family
        bytes_S, closed_S = np.array(points).T
        axes.scatter(bytes_S, closed_S, color=colour, marker=marker, s=18, alpha=0.5, linewidths=0)
        axes.scatter(bytes_S.mean(), closed_S.mean(), color=colour, marker=marker, s=60)
        axes.annotate(
            row.removeprefix("threshold ").removesuffix(", up to 255 draws"),
            (bytes_S.mean(), closed_S.mean()),
            xytext=LABEL_PLACES.get(row, (8, -3)),
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )
    axes.axhline(100, color="grey", linewidth=0.8)
    axes.annotate("dense KL", (0.01, 100), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="grey")
    axes.set_xscale("log")
    axes.set_xticks([30, 50, 100, 200])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("stored bytes per token, everything counted")
    axes.set_ylabel("share of the gap in held-out KL closed (%)\n0 is cross-entropy")
    axes.set_xlim(27, 800 if "threshold 1/2000" in runs else 330)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / f"{name}.png", dpi=150)
    plt.close(figure)
