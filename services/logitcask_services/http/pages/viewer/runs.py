"""Training runs, runs in rounds and reports that lie in a folder: their curves and tables, as far as they are there.

A run is a folder with metrics.jsonl, rounds.json or report.json, or one whose document says that training is under
way; held_out.jsonl beside the first has what it was measured on while it trained. Files are those that `logitcask
train`, `rounds` and `report` write; a run that is going on is read as it stands. A file that cannot be read is a
sentence in its place.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from logitcask_schemas.errors import LogitcaskError

METRICS, HELD_OUT, ROUNDS, REPORT = "metrics.jsonl", "held_out.jsonl", "rounds.json", "report.json"
RUN: Final = "logitcask.json"
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


class Evaluations(BaseModel):
    """held_out.jsonl, with what training had at the same time."""

    steps: list[int]
    """0 is before the first."""
    values: dict[str, list[float | None]]
    """By figure, one for each evaluation; null where it has none, or no finite one."""
    in_training: dict[str, list[float | None]]
    """Figures that were logged in training too: means over the positions trained since the evaluation before."""
    best: int | None
    """Number, from 0, of the evaluation with the lowest KL after the first step; null where there is none."""


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

    value: float | None
    """None of what is too large for a number, as the perplexity of 710 nats is."""
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
    is_running: bool = False
    """Whether its document says so; a run that was interrupted says so, too."""
    curves: Curves | None = None
    evaluations: Evaluations | None = None
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
        here = _files(self._folder)
        lines = [RunLine(name=self._folder.name, files=here)] if here else []
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
        lines = _read(folder / METRICS, _lines, problems)
        measured = _read(folder / HELD_OUT, _lines, problems)
        return Run(
            name=name,
            is_running=_read(folder / RUN, _status, problems) == "running",
            curves=None if lines is None else _curves(lines),
            evaluations=_evaluations(measured, lines or []) if measured else None,
            rounds=_read(folder / ROUNDS, Rounds.model_validate_json, problems),
            reports=reports or [],
            problems=problems,
        )

    def _is_inside(self, child: Path) -> bool:
        return child.is_dir() and child.resolve().parent == self._folder


def _files(folder: Path) -> list[str]:
    """Of a run, in a folder; none where it holds none."""
    files = [name for name in (METRICS, HELD_OUT, ROUNDS, REPORT) if (folder / name).is_file()]
    return files or ([RUN] if _read(folder / RUN, _status, []) == "running" else [])


def _read(path: Path, parse: Callable[[str], Parsed], problems: list[str]) -> Parsed | None:
    if not path.is_file():
        return None
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise RunFileError(f"it has {size:,} bytes, more than the {MAX_BYTES:,} that are read")
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, OverflowError, RecursionError) as error:  # a number of 400 digits, lists in lists
        problems.append(f"{path.name} cannot be read: {str(error)[:500]}")
        return None


def _reports(content: str) -> list[Report]:
    """A report; of several teachers, one for each."""
    document: Any = json.loads(content)
    parts = document.get("teachers", [document]) if isinstance(document, dict) else None
    if not isinstance(parts, list):
        raise RunFileError("it is no report, nor does it hold a list of them as `teachers`")
    return [Report.model_validate(part) for part in parts]


Line: TypeAlias = dict[str, float]
"""The finite numbers of a line, `step` among them."""


def _status(content: str) -> str:
    """Of a run document."""
    document: Any = json.loads(content)
    if not isinstance(document, dict):
        raise RunFileError("it is no run document")
    return str(document.get("status"))


def _lines(content: str) -> list[Line]:
    lines = content.split("\n")
    # The last line is empty, or is being written.
    return [_step(line, number) for number, line in enumerate(lines[:-1], start=1) if line.strip()]


def _curves(lines: list[Line]) -> Curves:
    kept = lines[:: max(1, math.ceil(len(lines) / MAX_POINTS))]
    return Curves(steps=[int(line["step"]) for line in kept], values=_columns(kept), lines=len(lines))


def _columns(lines: list[Line]) -> dict[str, list[float | None]]:
    """By name, its value in each line."""
    names = dict.fromkeys(name for line in lines for name in line if name != "step")
    return {name: [line.get(name) for line in lines] for name in names}


def _evaluations(measured: list[Line], trained: list[Line]) -> Evaluations:
    measured = measured[-MAX_POINTS:]
    steps = [int(line["step"]) for line in measured]
    values = {name: column for name, column in _columns(measured).items() if name not in _NOT_FIGURES}
    # Steps ascend in both files: of the lines trained, those since the evaluation before.
    edges = [bisect_right(trained, step, key=lambda line: int(line["step"])) for step in steps]
    parts = [trained[first:stop] for first, stop in pairwise([0, *edges])]
    logged = {name for line in trained for name in line}
    # What is measured as nll is logged as ce in training.
    names = {name: {"nll": "ce"}.get(name, name) for name in values}
    kl = next((values[name] for name in ("kl", "kl_bound") if name in values), [])
    after = [(value, at) for at, value in enumerate(kl) if value is not None and steps[at] > 0]
    return Evaluations(
        steps=steps,
        values=values,
        in_training={name: [_mean(part, key) for part in parts] for name, key in names.items() if key in logged},
        best=min(after)[1] if after else None,
    )


_NOT_FIGURES: Final = ("positions", "seconds")
"""Of a line of held_out.jsonl."""


def _mean(lines: list[Line], name: str) -> float | None:
    """Over the positions of some steps; None where none has the figure."""
    having = [line for line in lines if name in line]
    positions = sum(line.get("positions", 1.0) for line in having)
    return sum(line[name] * line.get("positions", 1.0) for line in having) / positions if positions else None


def _step(line: str, number: int) -> Line:
    """The finite numbers of a line."""
    entry: Any = json.loads(line)
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        raise RunFileError(f"line {number} has no whole number `step`")
    return {
        str(name): value
        for name, value in entry.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
