"""The training table as a picture: bytes per token against the share of the gap that is closed, one point per seed."""

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
            row,
            (bytes_S.mean(), closed_S.mean()),
            # Its neighbour lies too close for a label beside it.
            xytext=(-18, 9) if row.endswith("u8") else (8, -3),
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
