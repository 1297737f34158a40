"""A run in rounds in a process of its own, to be killed."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
"""Runs are forked from a process that has imported what they need: importing would take most of their lives."""
FORKS.set_forkserver_preload(["logitcask_consumer.rounds.driver", "logitcask_consumer.rounds.config"])


def _run(settings: dict[str, Any], stderr: Path) -> None:
    from logitcask_consumer.rounds import capture
    from logitcask_consumer.rounds.config import RoundsConfig
    from logitcask_consumer.rounds.driver import run_rounds

    with stderr.open("ab") as file:
        os.dup2(file.fileno(), 2)
    setattr(capture, "FIRST_PAUSE", 0.01)  # noqa: B010 - a constant
    run_rounds(RoundsConfig(**settings), say=lambda line: os.write(2, (line + "\n").encode()))  # type: ignore[arg-type]


def begin_forking() -> None:
    """Have the process from which runs are forked import what they need, so that no run's time holds it."""
    process = FORKS.Process(target=int)
    process.start()
    process.join()


class RoundsProcess:
    """Begins at once."""

    def __init__(self, settings: dict[str, Any], stderr: Path) -> None:
        self.stderr = stderr
        self.process = FORKS.Process(target=_run, args=(settings, stderr))
        self.process.start()

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL, unless it ends before; whether it was killed."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
        self.process.join()
        assert self.process.exitcode in (0, -signal.SIGKILL), self.stderr.read_text()[-4000:]
        return self.process.exitcode != 0

    def terminate_after(self, seconds: float) -> int:
        """SIGTERM, unless it ends before; the exit code."""
        self.process.join(seconds)
        self.process.terminate()
        self.process.join(120)
        code = self.process.exitcode
        assert code is not None, "it did not end"
        return code

    def finish(self) -> None:
        """Wait for its end."""
        self.process.join(300)
        assert self.process.exitcode == 0, self.stderr.read_text()[-4000:]
