"""Training runs, runs in rounds and reports that lie in a folder: their curves and tables, as far as they are there.

A run is a folder with metrics.jsonl, rounds.json or report.json. Files are those that `logitcask train`, `rounds` and
`report` write; a run that is going on is read as it stands. A file that cannot be read is a sentence in its place.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitcask_schemas.errors import LogitcaskError

METRICS, ROUNDS, REPORT = "metrics.jsonl", "rounds.json", "report.json"
MAX_POINTS: Final = 2000
"""Of a curve; of a longer one, every second, third, ... step is given."""
MAX_BYTES: Final = 64 << 20
MAX_RUNS: Final = 1000
Parsed = TypeVar("Parsed")


class RunNotFoundError(LogitcaskError, LookupError):
    """There is no run of this name."""


class RunFileError(LogitcaskError, ValueError):
    """A file of a run cannot be read."""


class Curves(BaseModel):
    """metrics.jsonl."""

    steps: list[int]
    values: dict[str, list[float | None]]
    """By metric, one for each step; null where a step has none, or no finite one."""
    lines: int
    """In the file."""


class HeldOut(BaseModel):
    """A round, as rounds.json has it."""

    model_config = ConfigDict(allow_inf_nan=False)

    number: int
    stage: str
    share: float
    documents: int | None = None
    held_out: dict[str, float] | None = None
    seconds: dict[str, float] = {}


class Rounds(BaseModel):
    """rounds.json."""

    model_config = ConfigDict(allow_inf_nan=False)

    status: str
    held_out: dict[str, float] | None = None
    """Before the first round."""
    rounds: list[HeldOut] = Field(max_length=10_000)


class Measure(BaseModel):
    """A figure of a report with its interval."""

    model_config = ConfigDict(allow_inf_nan=False)

    value: float
    low: float | None = None
    high: float | None = None


class MeasuredModel(BaseModel):
    """A model of a report."""

    label: str
    metrics: dict[str, Measure]


class Report(BaseModel):
    """A report on held-out documents."""

    kinds: dict[str, str]
    units: dict[str, str] = {}
    models: list[MeasuredModel]


class RunLine(BaseModel):
    """A run in the list."""

    name: str
    files: list[str]


class Run(BaseModel):
    """What a folder holds of a run."""

    name: str
    curves: Curves | None = None
    rounds: Rounds | None = None
    reports: list[Report] = []
    problems: list[str] = []
    """Why a file is not shown."""


class RunFolder:
    """Runs below a folder, or the one run that it is. Raises RunNotFoundError where there is no such folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise RunNotFoundError(f"{folder} is no folder; expected one that holds runs (the --output of train)")
        self._folder = folder.resolve()

    def runs(self) -> list[RunLine]:
        """Runs by name; folders that links lead to elsewhere are not among them."""
        own = _files(self._folder)
        lines = [RunLine(name=self._folder.name, files=own)] if own else []
        for child in sorted(self._folder.iterdir()):
            if child.name != self._folder.name and self._is_inside(child) and (files := _files(child)):
                lines.append(RunLine(name=child.name, files=files))
        return lines[:MAX_RUNS]

    def run(self, name: str) -> Run:
        """All of a run. Raises RunNotFoundError."""
        if name not in {line.name for line in self.runs()}:
            raise RunNotFoundError(f"there is no run {name[:200]!r} here")
        folder = self._folder if name == self._folder.name else self._folder / name
        problems: list[str] = []
        reports = _read(folder / REPORT, _reports, problems)
        return Run(
            name=name,
            curves=_read(folder / METRICS, _curves, problems),
            rounds=_read(folder / ROUNDS, Rounds.model_validate_json, problems),
            reports=reports or [],
            problems=problems,
        )

    def _is_inside(self, child: Path) -> bool:
        return child.is_dir() and child.resolve().parent == self._folder


def _files(folder: Path) -> list[str]:
    return [name for name in (METRICS, ROUNDS, REPORT) if (folder / name).is_file()]


def _read(path: Path, parse: Callable[[str], Parsed], problems: list[str]) -> Parsed | None:
    if not path.is_file():
        return None
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise RunFileError(f"it has {size:,} bytes, more than the {MAX_BYTES:,} that are read")
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        problems.append(f"{path.name} cannot be read: {str(error)[:500]}")
        return None


def _reports(content: str) -> list[Report]:
    """A report; of several teachers, one for each."""
    document: Any = json.loads(content)
    parts = document.get("teachers", [document]) if isinstance(document, dict) else None
    if not isinstance(parts, list):
        raise RunFileError("it is no report, nor does it hold a list of them as `teachers`")
    return [Report.model_validate(part) for part in parts]


def _curves(content: str) -> Curves:
    lines = content.split("\n")
    # The last line is empty, or is being written.
    steps = [_step(line, number) for number, line in enumerate(lines[:-1], start=1) if line.strip()]
    kept = steps[:: max(1, math.ceil(len(steps) / MAX_POINTS))]
    names = dict.fromkeys(name for step in kept for name in step if name != "step")
    return Curves(
        steps=[int(step["step"]) for step in kept],
        values={name: [step.get(name) for step in kept] for name in names if any(name in step for step in kept)},
        lines=len(steps),
    )


def _step(line: str, number: int) -> dict[str, float]:
    """The finite numbers of a line."""
    entry: Any = json.loads(line)
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        raise RunFileError(f"line {number} has no whole number `step`")
    return {
        str(name): value
        for name, value in entry.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
