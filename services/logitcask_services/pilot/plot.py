"""The choice as a picture: what a tau costs above, the noise it leaves below."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from logitcask_services.pilot.choose_tau import GRID, TauChoice

_INK, _GRID, _LINE, _SECOND = "#22272e", "#d8dee6", "#2563eb", "#c2410c"
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 150,
    "font.size": 10,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def plot_choice(choice: TauChoice, path: Path) -> None:
    """Write bytes per token and relative noise over 1 / tau, with budget and choice marked, as a PNG file."""
    inverses = [figures.inverse for figures in choice.table]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 6.0), layout="constrained")
        cost, noise = figure.subplots(2, 1, sharex=True)
        cost.plot(inverses, [figures.arrow_bytes for figures in choice.table], color=_LINE, label="Arrow")
        cost.plot(
            inverses, [figures.zarr_bytes for figures in choice.table], color=_LINE, linestyle=(0, (4, 3)), label="Zarr"
        )
        cost.axhline(choice.budget, color=_SECOND, linewidth=1)
        cost.plot([choice.chosen.inverse], [choice.bytes_per_token], "o", color=_SECOND, label="chosen")
        cost.set(title="bytes per token", ylim=(0, None))
        cost.text(inverses[-1], choice.budget, f"budget {choice.budget:g}", ha="right", va="bottom", color=_SECOND)
        cost.legend(loc="upper left")
        noise.plot(inverses, [figures.relative_noise for figures in choice.table], color=_LINE)
        noise.plot([choice.chosen.inverse], [choice.chosen.relative_noise], "o", color=_SECOND)
        whose = "a student's gradient" if choice.gradient_of == "student" else "the gradient at the start of training"
        noise.set(title=f"noise of one position over {whose}", yscale="log", xlabel="1 / tau", xscale="log")
        noise.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        noise.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        noise.yaxis.set_minor_locator(NullLocator())
        noise.set_xticks(GRID, [str(inverse) for inverse in GRID])
        noise.xaxis.set_minor_locator(NullLocator())
        figure.savefig(path)
