"""What a run shows and writes while it goes: a progress bar on stderr, one line of metrics per logged step on disk."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from logitcask_consumer.run_document import explained_writes, replace_file

_SHOWN = ("kl", "ce", "lr", "tokens_per_second")
_ADVICE = "Free space and give the same command again; it continues from the last checkpoint"


class ProgressBar(TrainerCallback):
    """Steps, KL, cross-entropy, learning rate, tokens/s and time left; plain lines where stderr is no terminal."""

    def __init__(self, *, line_seconds: float = 15.0) -> None:
        self._console = Console(stderr=True)
        self._line_seconds = line_seconds
        self._last_line = 0.0
        self._bar: Progress | None = None
        self._task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the step that training starts from."""
        if not state.is_world_process_zero or not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._bar.start()
        self._task = self._bar.add_task("train", total=state.max_steps, completed=state.global_step, metrics="")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the metrics of the last step."""
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        shown = "  ".join(f"{name} {_short(logs[name])}" for name in [*of_each_cask(logs), *_SHOWN] if name in logs)
        if self._bar is not None:
            self._bar.update(self._task, metrics=shown)
        elif time.monotonic() - self._last_line >= self._line_seconds or state.global_step == state.max_steps:
            self._last_line = time.monotonic()
            self._console.print(f"step {state.global_step}/{state.max_steps}  {shown}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Give the terminal back; also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class MetricsLog(TrainerCallback):
    """metrics.jsonl: one JSON document per logged step. A resumed run first drops the lines it will write again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to the step that training starts from."""
        if not state.is_world_process_zero:
            return
        kept = [line for line in _complete_lines(self._path) if json.loads(line)["step"] <= state.global_step]
        with explained_writes(self._path, _ADVICE):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, "".join(kept))
            # Without a buffer: nothing is left to be written when it is closed after an error.
            self._file = self._path.open("ab", buffering=0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one line."""
        if self._file is not None and logs is not None and "loss" in logs:
            line = memoryview((json.dumps({"step": state.global_step, **logs}) + "\n").encode())
            with explained_writes(self._path, _ADVICE):
                while line:
                    line = line[self._file.write(line) :]

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing is lost that a checkpoint counts as done."""
        if self._file is not None:
            with explained_writes(self._path, _ADVICE):
                os.fsync(self._file.fileno())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; also after an error."""
        if self._file is not None:
            self._file.close()
            self._file = None


class LogWhenSaving(TrainerCallback):
    """Log whenever a checkpoint is saved: no averaging window spans one, and a resumed log equals an unbroken one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and log as often as this call asks, not as the one did whose checkpoint is continued."""
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a log beside a save."""
        if control.should_save:
            control.should_log = True


class StopWhenAsked(TrainerCallback):
    """Ends training after the step in which it was asked to, with a checkpoint."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save, log and stop; on all processes after the same step, if `asked` says the same on all."""
        if self._asked():
            control.should_save = control.should_log = control.should_training_stop = True


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a crash cut short is left out."""
    return [json.loads(line) for line in _complete_lines(path)]


def closing_mean(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the positions of the last tenth of the steps: one step alone may have trained a few hundred only."""
    last = [line for line in lines if line["step"] > 0.9 * lines[-1]["step"]]
    positions = sum(line["positions"] for line in last)
    means: dict[str, float] = {"steps": len(last), "positions": positions}
    for name in dict.fromkeys(name for line in last for name in ("kl", "kd", "ce", *of_each_cask(line))):
        counted = f"positions/{name.partition('/')[2]}" if "/" in name else "positions"
        if measured := [line for line in last if name in line]:
            total = sum(line[counted] for line in measured)
            means[name] = sum(line[name] * line[counted] for line in measured) / max(total, 1.0)
    return means


def of_each_cask(metrics: Mapping[str, Any]) -> list[str]:
    """Of a run on several teachers, the metric that says most of each cask: its KL, or else its loss."""
    labels = [name.partition("/")[2] for name in metrics if name.startswith("positions/")]
    return [f"kl/{label}" if f"kl/{label}" in metrics else f"kd/{label}" for label in labels]


def _complete_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
