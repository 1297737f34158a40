"""Two processes of torchrun on this machine, over gloo."""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def run_in_two_processes(script, *arguments):
    """Run a script of this folder, and show what it said where it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(FOLDER / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-12000:]


def train_in_two_processes(config):
    """A run of `train`; returns its output folder."""
    run_in_two_processes("ddp_worker.py", json.dumps(config.as_dict()))
    return config.output
