"""Runs of several seeds: each noted as it ends, so that an interrupted table goes on; means with 95 % intervals."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from logitcask_consumer.training.train_result import TrainResult

T_975: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""97.5 % points of the t distribution by degrees of freedom."""


def finished(path: Path) -> list[dict[str, str]]:
    """Runs that an earlier call noted."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def keep(path: Path, run: Mapping[str, Any]) -> None:
    """Note a finished run, and print it."""
    new = not path.exists()
    path.parent.mkdir(exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(run))
        if new:
            writer.writeheader()
        writer.writerow(run)
    print({name: f"{value:.4f}" if isinstance(value, float) else value for name, value in run.items()}, flush=True)


def whole(result: TrainResult) -> Path:
    """The folder of a student whose training came to its end; SystemExit where a signal stopped it."""
    if result.stopped_at is not None:
        raise SystemExit(f"a signal stopped the training after step {result.stopped_at}; the same call begins it anew")
    return result.output


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % t-interval of the mean of two to five values; NaN of one."""
    if len(values) < 2:
        return math.nan
    return float(T_975[len(values) - 1] * np.std(values, ddof=1) / math.sqrt(len(values)))


def interval(values: Sequence[float]) -> dict[str, str]:
    """Mean over seeds and `half_width`, as labels of a report."""
    half = half_width(values)
    return {"mean": f"{np.mean(values):.4g}", "interval": "" if math.isnan(half) else f"{half:.3g}"}
