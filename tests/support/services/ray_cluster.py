"""A Ray cluster of one node in processes of its own, small and silent, whose head can be killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.services.process_engines import is_alive

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # it would ask for the token that lies in the home folder of who has used Ray before
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3",  # who has lost the head ends after that
    "RAY_kill_worker_timeout_milliseconds": "100",
    # A busy machine is no fault of what is tested.
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_worker_register_timeout_seconds": "300",
}
_SERVERS = ("gcs_server", "raylet")
"""What a cluster cannot do without."""
ROOT = Path(__file__).resolve().parents[3]


class RayCluster:
    """`start`, then `address`; `stop` at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes = list[int]()
        self.address = ""

    def start(self, port: int = 0, **settings: str) -> None:
        """Start a head with two CPUs and no dashboard.

        Args:
            port: of the head; 0 takes a free one.
            settings: of Ray, as the environment has them.
        """
        before = {process.pid for process in psutil.process_iter()}
        arguments = ["--head", f"--port={port or free_port()}", "--num-cpus=2", "--include-dashboard=false"]
        arguments += ["--node-ip-address=127.0.0.1"]
        arguments += ["--object-store-memory=80000000", f"--temp-dir={self.folder}", "--disable-usage-stats"]
        path = os.pathsep.join([str(ROOT), *(folder for folder in sys.path if folder)])
        said = self.folder / "start.log"  # a file: what it starts would keep a pipe open
        self.folder.mkdir(parents=True, exist_ok=True)
        with said.open("wb") as file:
            started = psutil.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments],
                env={**os.environ, **_QUIET, **settings, "PYTHONPATH": path},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            died = dead_child_of(started)
        self.address = next(part.split("=")[1] for part in arguments if part.startswith("--port="))
        self.address = f"127.0.0.1:{self.address}"
        self._processes = [
            process.pid
            for process in psutil.process_iter()
            if process.pid not in before and str(self.folder) in " ".join(_command(process))
        ]
        if died is not None or started.returncode != 0:
            self.kill()
            of_it = sorted(self.folder.glob(f"session_latest/logs/{died}.*"))
            logs = "".join(f"\n{log}:\n{log.read_text(errors='replace')[-4000:]}" for log in of_it)
            fault = "" if died is None else f"the cluster's {died} died while it was started\n"
            raise AssertionError(f"{fault}{said.read_text()}{logs}")
        assert self._processes, "no process of the cluster was found"

    def kill(self) -> None:
        """SIGKILL to all that was started, and to what that has started."""
        mine = [process for pid in self._processes for process in _family(pid)]
        for process in mine:
            if is_alive(process.pid):
                os.kill(process.pid, signal.SIGKILL)
        until = time.monotonic() + 30
        while any(is_alive(process.pid) for process in mine) and time.monotonic() < until:
            time.sleep(0.05)
        self._processes = []

    stop = kill


def dead_child_of(started: psutil.Popen) -> str | None:
    """Wait for `ray start`; what it started and has died, for which it would wait as long as for one that is slow."""
    while started.poll() is None:
        with suppress(psutil.NoSuchProcess):
            dead = [child.name() for child in started.children() if child.status() == psutil.STATUS_ZOMBIE]
            if name := next((name for name in dead if name in _SERVERS), None):
                started.kill()
                started.wait()
                return name
        time.sleep(0.1)
    return None


def free_port() -> int:
    """A port that nobody listens on now."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
