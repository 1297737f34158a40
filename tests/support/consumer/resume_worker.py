"""One of the processes of runs that are interrupted, stopped, killed and resumed; its argument is a file of calls.

Each call is a JSON object: `settings` of a run, `stop` (the step in which it dies), `signal` (the step in which the
second process gets a SIGTERM), `kill` (the step whose checkpoint the second process is killed in), `deaf` (the second
process trains nothing), `record` (the file for what each step trained). Results go to OUTPUT-RANK.json.
"""

import importlib
import json
import os
import signal
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from transformers import TrainerCallback

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import EMPTY, StepSampler
from logitcask_consumer.processes import leave_processes
from logitcask_consumer.training.callbacks import LogWhenSaving
from logitcask_consumer.training.run import train
from logitcask_consumer.training.run_content import TrainResult
from logitcask_consumer.training.trainer import DistillTrainer

callbacks_of: Any = importlib.import_module("logitcask_consumer.training.train_to_end")


class Stop(TrainerCallback):
    """Dies in the middle of a step, as a killed process would as far as files are concerned."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Signal(LogWhenSaving):
    """Sends this process a SIGTERM in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def killed_while_saving(step: int) -> None:
    """Let this process be killed when its part of the checkpoint of a step should be written."""

    class Killed(FileSystemWriter):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.last = path.parent.name == f"checkpoint-{step}"

        def write_data(self, plan: Any, planner: Any) -> Any:
            if self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().write_data(plan, planner)

    shards: Any = importlib.import_module("logitcask_consumer.student.sharded_state")
    shards.FileSystemWriter = Killed


def train_nothing() -> None:
    """Let this process read empty sequences only."""
    sampler: Any = StepSampler
    plain = sampler.__iter__
    sampler.__iter__ = lambda self: ([EMPTY] * len(batch) for batch in plain(self))


def config_of(settings: dict[str, Any]) -> TrainConfig:
    settings = dict(settings)
    for name in ("output", "teacher"):
        settings[name] = Path(settings[name])
    settings["casks"] = tuple(map(Path, settings["casks"]))
    settings["report_to"] = tuple(settings["report_to"])
    return TrainConfig(**settings)


def recorded_train(
    config: TrainConfig, record: Path, *, stop: int | None = None, at_signal: int | None = None
) -> TrainResult | None:
    """A run that writes down what each of its steps trained: document * 1000 + position, for documents of one window.

    Returns its result, or None where it died.
    """
    trainer: Any = DistillTrainer
    steps: defaultdict[int, list[np.ndarray]] = defaultdict(list)
    plain, plain_callback = trainer.compute_loss, callbacks_of.LogWhenSaving

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        slots = inputs["slots"]
        positions = inputs["position_ids"].flatten()[slots].numpy()
        steps[self.state.global_step + 1].append(inputs["documents"].numpy().astype(np.int64) * 1000 + positions)
        return plain(self, model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    if stop is not None:
        callbacks_of.LogWhenSaving = lambda: Stop(stop)
    elif at_signal is not None:
        callbacks_of.LogWhenSaving = lambda: Signal(at_signal)
    try:
        result: TrainResult = train(config)
    except KeyboardInterrupt:
        return None
    finally:
        trainer.compute_loss, callbacks_of.LogWhenSaving = plain, plain_callback
        arrays: dict[str, Any] = {str(step): np.concatenate(parts) for step, parts in steps.items()}
        np.savez(record, **arrays)
    return result


def require_resumed_alike(whole: TrainConfig, folder: Path, *, stop: int, weights: str = "model.safetensors") -> None:
    """A run that dies in the step `stop` and goes on ends with the bits of one that is not interrupted.

    Args:
        whole: the run, in its output folder.
        folder: for the broken run, and for records.
        stop: the step.
        weights: file that a student is saved in.
    """
    broken = replace(whole, output=folder / "broken")
    assert recorded_train(whole, folder / "whole.npz") is not None
    assert recorded_train(broken, folder / "first.npz", stop=stop) is None
    assert recorded_train(broken, folder / "second.npz") is not None
    expected, resumed = (load_file(run.output / weights) for run in (whole, broken))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def main() -> None:
    rank = int(os.environ["RANK"])
    results: dict[int, int | None] = {}
    for number, call in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        config = config_of(call["settings"])
        signalled = call.get("signal") if rank == 1 else None
        record = Path(f"{call['record']}-{rank}.npz")
        if rank == 1 and call.get("kill"):
            killed_while_saving(call["kill"])
        if rank == 1 and call.get("deaf"):
            train_nothing()  # in the last call: it is not undone
        result = recorded_train(config, record, stop=call.get("stop"), at_signal=signalled)
        results[number] = None if result is None else result.stopped_at
    Path(f"{sys.argv[1]}-{rank}.json").write_text(json.dumps(results))
    leave_processes()


if __name__ == "__main__":
    main()
