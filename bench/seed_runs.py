"""Tables over seeds: options; runs, each noted as it ends, so that an interrupted table goes on; 95 % intervals."""

import argparse
import csv
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.training.run_content import TrainResult
from report import RESULTS

LENGTH: Final = 257
"""Tokens of a document: 256 positions."""
T_975: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""97.5 % points of the t distribution by degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class TableSetting:
    """What all runs of a table share."""

    teacher: Path
    cache: Path
    steps: int
    batch: int
    lr: float
    documents: int
    held_out: int
    name: str

    @property
    def runs(self) -> Path:
        """Where figures are noted, so that an interrupted table goes on."""
        return RESULTS / f"{self.name}_runs.csv"

    def training(self, cask: Path, output: Path, seed: int, **settings: Any) -> TrainConfig:
        """A run of `logitcask train` in which each document is a sequence; `settings` are those of an arm."""
        length = LENGTH - 1
        return TrainConfig(
            casks=(cask,),
            output=output,
            max_steps=self.steps,
            seq_len=length,
            packing="none",
            batch_tokens=length * self.batch,
            micro_tokens=length * min(self.batch, 8),
            lr=self.lr,
            warmup=0.1,
            seed=seed,
            **settings,
        )

    def remove_results(self) -> None:
        """Of a run that only shows that it runs."""
        self.runs.unlink()
        (RESULTS / f"{self.name}.csv").unlink()


def table_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Options that every table over seeds has; `defaults` are those of documents, held_out, steps, batch, lr, name."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--teacher", type=Path, help="folder (default: SmolLM2-135M-Instruct, fetched)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "logitcask-bench-teacher")
    parser.add_argument("--documents", type=int)
    parser.add_argument("--held-out", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, help="documents")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--name", help="of the files with the results")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed, two steps, few documents: does it run?")
    parser.set_defaults(**defaults)
    return parser


def table_options(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """What was asked for, the teacher fetched where none was named; with --quick little of all, `quick` besides."""
    from demo.fetch_teacher import fetch_model

    options = parser.parse_args()
    if options.quick:
        small = {"steps": 2, "batch": 2, "documents": 4, "held_out": 2, "seeds": options.seeds[:1]}
        vars(options).update(small | quick, name=f"{options.name}_quick")
    options.teacher = options.teacher or fetch_model("smollm2-135m")
    return options


def shared(options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """The options that are members of a `TableSetting`, and of one that has `more`."""
    return {name: getattr(options, name) for name in (*TableSetting.__dataclass_fields__, *more)}


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
