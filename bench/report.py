"""Figures of a benchmark: printed as they come, then written as CSV with p20/p50/p80 and where they were measured."""

import csv
import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"


class Report:
    """Rows of one benchmark; those of `write` replace the results of an earlier run."""

    def __init__(self, script: str, *packages: str) -> None:
        """Begin.

        Args:
            script: `__file__` of the benchmark; its name is that of the CSV file.
            packages: distributions whose versions matter to the figures.
        """
        self.path = RESULTS / f"{Path(script).stem}.csv"
        self.rows: list[dict[str, Any]] = []
        self._facts = {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        }

    def add(self, metric: str, unit: str, values: Sequence[float], note: str = "", **labels: Any) -> float:
        """Note the repeats of a figure; returns their median. Labels become the first columns."""
        p20, p50, p80 = np.percentile(values, [20, 50, 80])
        figures = {"p20": f"{p20:.4g}", "p50": f"{p50:.4g}", "p80": f"{p80:.4g}", "repeats": len(values), "note": note}
        self.rows.append({**labels, "metric": metric, "unit": unit, **figures, **self._facts})
        name = "  ".join([*map(str, labels.values()), metric])
        print(f"{name:<72} {p50:>12,.4g} {unit}  (p20 {p20:,.4g}, p80 {p80:,.4g})  {note}", flush=True)
        return float(p50)

    def write(self) -> None:
        """Replace the results' file."""
        self.path.parent.mkdir(exist_ok=True)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def cpu_name() -> str:
    """The processor's model as Linux names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds that each call takes."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found
