"""Two processes, or more, of one distributed run on this machine, over gloo.

They are forked from a launcher that has imported what they need, one for each test process: importing would take most
of their lives. `torchrun` itself starts them where a test asks for it.
"""

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from logitcask_consumer.config import TrainConfig


def run_in_two_processes(
    module: str, *arguments: str | Path, torchrun: bool = False, processes: int = 2, killed: int | None = None
) -> None:
    """Run a module of this package, and show what it said where it fails.

    `killed` is the number of a process that kills itself (SIGKILL); the others are ended then, as torchrun does.
    """
    name, words = f"{__package__}.{module}", list(map(str, arguments))
    if torchrun:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", name]
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, timeout=300, check=False, env=environment()
        )
        assert done.returncode == 0, done.stderr[-12000:]
        return
    launcher = _launcher()
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    call: dict[str, Any] = {"module": name, "arguments": words, "processes": processes}
    call |= {"environment": dict(os.environ), "folder": str(Path.cwd())}
    launcher.stdin.write(json.dumps(call) + "\n")
    launcher.stdin.flush()
    answer = json.loads(launcher.stdout.readline())
    if killed is None:
        assert answer["codes"] == [0] * processes, answer["said"][-12000:]
    else:
        assert answer["codes"][killed] == -signal.SIGKILL, answer["said"][-12000:]


def train_in_two_processes(config: TrainConfig, *, torchrun: bool = False) -> Path:
    """A run of `train`; returns its output folder."""
    run_in_two_processes("ddp_worker", json.dumps(config.as_dict()), torchrun=torchrun)
    return config.output


@cache
def _launcher() -> "subprocess.Popen[str]":
    """It ends with this process, which holds the other end of its standard input."""
    return subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.pair_launcher"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def environment() -> dict[str, str]:
    """Of a process that finds the modules of this one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}
