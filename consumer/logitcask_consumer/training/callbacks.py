"""What a run writes while it goes, one line of metrics per logged step or evaluation; when it logs, saves and stops."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from transformers import TrainerCallback

from logitcask_consumer.run_document import explained_writes, replace_file

_OF_TRANSFORMERS: Final = ("loss", "samples_per_second", "steps_per_second", "model_preparation_time")
"""What it adds to an evaluation that says nothing, or what the figures say already."""
_ADVICE = "Free space and give the same command again; it continues from the last checkpoint"


class MetricsLog(TrainerCallback):
    """metrics.jsonl: one JSON document per logged step. A resumed run first drops the lines it will write again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    @staticmethod
    def line_of(logs: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What of a log is a line; None for none."""
        return logs if "loss" in logs else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to the step that training starts from."""
        if not state.is_world_process_zero:
            return
        # Before the first step nothing is kept: a run that begins again measures anew there, too.
        last = state.global_step or -1
        kept = [line for line in _complete_lines(self._path) if json.loads(line)["step"] <= last]
        with explained_writes(self._path, _ADVICE):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, "".join(kept))
            # Without a buffer: nothing is left to be written when it is closed after an error.
            self._file = self._path.open("ab", buffering=0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one line."""
        values = None if logs is None else self.line_of(logs)
        if self._file is not None and values is not None:
            line = memoryview((json.dumps({"step": state.global_step, **values}) + "\n").encode())
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


class HeldOutLog(MetricsLog):
    """held_out.jsonl: one JSON document per evaluation."""

    @staticmethod
    def line_of(logs: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The figures of an evaluation, with its seconds; None where something else is logged."""
        if "eval_loss" not in logs:
            return None
        named = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        figures = {name: value for name, value in named.items() if name not in _OF_TRANSFORMERS}
        return figures | {"seconds": figures.pop("runtime")}


class LogWhenSaving(TrainerCallback):
    """Log whenever a checkpoint may be saved: no averaging window spans one, and a resumed log equals an unbroken one.

    An evaluation may find the best student so far, which is saved then.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and log as often as this call asks, not as the one did whose checkpoint is continued."""
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a log beside a save and an evaluation."""
        if control.should_save or control.should_evaluate:
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


def metrics_summary(path: Path) -> dict[str, Any]:
    """Positions trained, first and last line of a metrics.jsonl, and means at the end; see `closing_mean`."""
    lines = read_metrics(path)
    return {
        "positions": sum(line["positions"] for line in lines),
        "first": lines[0],
        "last": lines[-1],
        "closing": closing_mean(lines),
    }


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
