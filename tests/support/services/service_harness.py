"""A real server in a thread, with a client; corpora as bytes; patience."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from logitcask_schemas.cask import Cask
from logitcask_services.http.connections import ConnectionLimits
from logitcask_services.http.server import Server, bind
from logitcask_services.jobs.loaded_teacher import LoadHinted, Teacher
from logitcask_services.jobs.roster import Roster
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.services.fake_teacher import fake_teacher

FAKE_SERVER = [sys.executable, "-m", "tests.support.services.fake_server"]
"""A real server in a process of its own; its settings as JSON follow."""
FINAL = ("completed", "failed", "cancelled")


class RunningServer:
    """A server in a thread, with a client that is told about it."""

    def __init__(self, service: Service, key: str | None, limits: ConnectionLimits | None = None) -> None:
        self.service = service
        listener = bind("127.0.0.1", 0)
        self._server = Server(service, listener, limits or ConnectionLimits())
        self._thread = threading.Thread(target=self._server.run)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Without certificates, which take 50 ms to read, at each of some thousand servers.
        self.client = httpx2.Client(base_url=self.url, timeout=30, headers=headers, verify=False)

    def start(self) -> None:
        self._thread.start()
        wait_for(lambda: self._server.started)

    def stop(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        # A service leaves a teacher that is deep in its work to the end of the process, which here is the tests'.
        begun = [thread for thread in self.service._threads if thread.ident is not None]
        for thread in begun:
            thread.join(2)
        if not any(thread.is_alive() for thread in begun):
            self.service.database.close()

    def upload(self, lines: list[Any] | bytes) -> dict[str, Any]:
        body = lines if isinstance(lines, bytes) else jsonl(lines)
        answer = self.client.post("/v1/corpora", content=body, headers={"Content-Type": "application/jsonl"})
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def submit(self, corpus: dict[str, Any], cask: str = "cask", **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/extractions", json={"corpus_id": corpus["id"], "cask": cask, **fields})
        assert answer.status_code == 202, answer.text
        return answer.json()

    def get(self, extraction_id: str) -> dict[str, Any]:
        return self.client.get(f"/v1/extractions/{extraction_id}").raise_for_status().json()

    def finish(self, extraction_id: str, seconds: float = 60) -> dict[str, Any]:
        wait_for(lambda: self.get(extraction_id)["status"] in FINAL, seconds)
        return self.get(extraction_id)

    def errors(self, extraction_id: str) -> list[dict[str, Any]]:
        text = self.client.get(f"/v1/extractions/{extraction_id}/errors").raise_for_status().text
        return [json.loads(line) for line in text.splitlines()]


StartServer = Callable[..., RunningServer]
"""`start(load=..., fake=..., limits=..., load_hinted=..., roster=..., **settings)`; `fake`: of `fake_teacher`."""


def settings_in(folder: Path, **changes: Any) -> ServiceSettings:
    """Settings with everything in one folder, small chunks and no patience."""
    defaults: dict[str, Any] = {
        "teacher": folder / "teacher",
        "cask_root": folder / "casks",
        "data_dir": folder / "state",
        "disk_floor_bytes": 0,
        "chunk_positions": 200,
        "engine_backoff_seconds": 0.01,
        "pause_poll_seconds": 0.05,
    }
    return ServiceSettings(**{**defaults, **changes})


@contextmanager
def servers(make_settings: Callable[..., ServiceSettings]) -> Iterator[StartServer]:
    """A function that starts servers, which stop at the end."""
    started: list[RunningServer] = []

    def start(
        load: Callable[[], Teacher] | None = None,
        fake: dict[str, Any] | None = None,
        limits: ConnectionLimits | None = None,
        load_hinted: LoadHinted | None = None,
        roster: Roster | None = None,
        **settings: Any,
    ) -> RunningServer:
        service = Service(
            make_settings(**settings),
            roster or (lambda role: load() if load else fake_teacher(**(fake or {}))),
            load_hinted,
        )
        server = RunningServer(service, settings.get("api_key"), limits)
        started.append(server)
        server.start()
        if load is None and roster is None:
            # Answers that need to know the teacher are "it is loading" until then.
            wait_for(lambda: service.facts_of(None) is not None)
        return server

    yield start
    for server in started:
        server.stop()


def cask_of(folder: Path, name: str = "cask") -> Cask:
    """A cask of a server whose folders lie in a test's own folder."""
    return Cask.open(folder / "casks" / name)


def server_environment() -> dict[str, str]:
    """Variables with which a process finds what this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
