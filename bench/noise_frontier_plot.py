"""The noise frontier as a picture: bytes per token against gradient error, per kind of text."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter, ScalarFormatter

PLOT = Path(__file__).resolve().parent.parent / "docs" / "images" / "noise-frontier.png"
STYLES = {
    "threshold": ("tab:blue", "o", "-"),
    "sampled, systematic": ("tab:green", "s", "-"),
    "sampled, multinomial": ("tab:olive", "D", "-"),
    "random sampling": ("tab:purple", "x", "-"),
    "ghost top-k": ("tab:orange", "^", "--"),
    "renormalised top-k": ("tab:red", "v", "--"),
}
ERRORS = {"error per position": "of one position's gradient", "error per batch": "of the head's gradient, whole text"}


def draw(found: dict[str, dict[tuple[str, int], dict[str, float]]]) -> None:
    """Write the plot: a column per kind of text, a row per error; dashed lines are biased schemes."""
    figure, grid = plt.subplots(
        len(ERRORS), len(found), figsize=(3.6 * len(found), 6.4), layout="constrained", squeeze=False, sharey="row"
    )
    for column, (kind, figures) in enumerate(found.items()):
        for row, (error, label) in enumerate(ERRORS.items()):
            axes = grid[row, column]
            for scheme, (colour, marker, line) in STYLES.items():
                points = sorted(
                    (point["bytes, all"], point[error]) for (name, _), point in figures.items() if name == scheme
                )
                axes.plot(
                    *zip(*points, strict=True), color=colour, marker=marker, linestyle=line, markersize=4, label=scheme
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks([20, 50, 100, 200, 500])
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(kind if row == 0 else "")
            axes.set_xlabel("stored bytes per token" if row else "")
            axes.set_ylabel(
                f"squared error {label}\n(share of the dense gradient's)" if column == 0 else "", fontsize=8
            )
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(PLOT, dpi=150)
    plt.close(figure)
