"""A real server with the fake teacher in a process of its own, to be killed."""

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import httpx2

from tests.support.services.fake_server import run_forked
from tests.support.services.service_harness import wait_for

FORKS = multiprocessing.get_context("forkserver")
"""Servers are forked from a process that has imported what they need: importing would take most of their lives."""
FORKS.set_forkserver_preload(["logitcask_services.http.server"])


class ServerProcess:
    """Serves from a folder; `fake` and `writer` are scripted into the teacher, see `fake_server`."""

    def __init__(self, folder: Path, settings: Any = None, writer: Any = None, **fake: Any) -> None:
        self.folder = folder
        self.log = folder / "log"
        folder.mkdir(exist_ok=True)
        given = {
            "cask_root": str(folder / "casks"),
            "data_dir": str(folder / "state"),
            "port": 0,
            "chunk_positions": 200,
            "disk_floor_bytes": 0,
            "fake": {"log": str(self.log), **fake},
            "writer": writer or {},
            **(settings or {}),
        }
        addresses, said = FORKS.Pipe(duplex=False)
        with addresses:
            self.process = FORKS.Process(target=run_forked, args=(given, folder / "stderr", said))
            with said:
                self.process.start()
            try:
                url = addresses.recv()
            except EOFError:
                raise AssertionError((folder / "stderr").read_text()) from None
        self.client = httpx2.Client(base_url=url, timeout=30)
        wait_for(self._answers, 120)

    def _answers(self) -> bool:
        assert self.process.is_alive(), (self.folder / "stderr").read_text()
        try:
            return self.client.get("/health").status_code == 200
        except httpx2.TransportError:
            return False

    def status(self, extraction: str) -> dict[str, Any]:
        """The extraction."""
        status: dict[str, Any] = self.client.get(f"/v1/extractions/{extraction}").raise_for_status().json()
        return status

    @property
    def pid(self) -> int:
        """Of the server."""
        assert self.process.pid is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL."""
        self.client.close()
        self.process.kill()
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL

    def end(self) -> int | None:
        """SIGTERM; the exit code."""
        self.client.close()
        self.process.terminate()
        self.process.join(60)
        return self.process.exitcode
