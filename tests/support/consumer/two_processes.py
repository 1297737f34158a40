"""Two processes of torchrun on this machine, over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

from logitcask_consumer.config import TrainConfig


def run_in_two_processes(module: str, *arguments: str | Path) -> None:
    """Run a module of this package, and show what it said where it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", f"{__package__}.{module}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-12000:]


def train_in_two_processes(config: TrainConfig) -> Path:
    """A run of `train`; returns its output folder."""
    run_in_two_processes("ddp_worker", json.dumps(config.as_dict()))
    return config.output
