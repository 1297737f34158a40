"""One of two processes that train, are interrupted, stopped and resumed; started by torchrun with a file of calls.

Each call is a JSON object: `settings` of a run, `stop` (the step in which it dies), `signal` (the step in which the
second process gets a SIGTERM), `record` (the file for what each step trained). Results go to OUTPUT-RANK.json.
"""

import json
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from transformers import TrainerCallback

import logitcask_consumer.training.run as module
from logitcask_consumer.config import TrainConfig
from logitcask_consumer.processes import leave_processes
from logitcask_consumer.training.callbacks import LogWhenSaving
from logitcask_consumer.training.trainer import DistillTrainer


class Stop(TrainerCallback):
    """Dies in the middle of a step, as a killed process would as far as files are concerned."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Signal(LogWhenSaving):
    """Sends this process a SIGTERM in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def config_of(settings):
    settings = dict(settings)
    for name in ("output", "teacher"):
        settings[name] = Path(settings[name])
    settings["casks"] = tuple(map(Path, settings["casks"]))
    settings["report_to"] = tuple(settings["report_to"])
    return TrainConfig(**settings)


def recorded_train(config, record, *, stop=None, at_signal=None):
    """A run that writes down what each of its steps trained: document * 1000 + position, for documents of one window.

    Returns its result, or None where it died.
    """
    steps, plain, plain_callback = defaultdict(list), DistillTrainer.compute_loss, module.LogWhenSaving

    def compute_loss(self, model, inputs, *args, **kwargs):
        slots = inputs["slots"]
        positions = inputs["position_ids"].flatten()[slots].numpy()
        steps[self.state.global_step + 1].append(inputs["documents"].numpy().astype(np.int64) * 1000 + positions)
        return plain(self, model, inputs, *args, **kwargs)

    DistillTrainer.compute_loss = compute_loss
    if stop is not None:
        module.LogWhenSaving = lambda: Stop(stop)
    elif at_signal is not None:
        module.LogWhenSaving = lambda: Signal(at_signal)
    try:
        return module.train(config)
    except KeyboardInterrupt:
        return None
    finally:
        DistillTrainer.compute_loss, module.LogWhenSaving = plain, plain_callback
        np.savez(record, **{str(step): np.concatenate(parts) for step, parts in steps.items()})


def main():
    rank, results = int(os.environ["RANK"]), {}
    for number, call in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        config = config_of(call["settings"])
        signalled = call.get("signal") if rank == 1 else None
        record = Path(f"{call['record']}-{rank}.npz")
        result = recorded_train(config, record, stop=call.get("stop"), at_signal=signalled)
        results[number] = None if result is None else result.stopped_at
    Path(f"{sys.argv[1]}-{rank}.json").write_text(json.dumps(results))
    leave_processes()


if __name__ == "__main__":
    main()
