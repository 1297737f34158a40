"""What the service's tests share: a service on the fake teacher, a real server on loopback, corpora as files."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).parent))  # for fake_teacher, which the tests' own server process imports too

from fake_teacher import fake_teacher

from logitcask_services.http.app import create_app
from logitcask_services.http.server import _Server, bind
from logitcask_services.jobs.teacher import Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings

FINAL = ("completed", "failed", "cancelled")


class RunningServer:
    """A server in a thread, with a client that is told about it."""

    def __init__(self, service: Service, key: str | None) -> None:
        self.service = service
        self.app = create_app(service)
        listener = bind("127.0.0.1", 0)
        config = uvicorn.Config(self.app, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
        self._server = _Server(config, service)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx2.Client(base_url=self.url, timeout=30, headers=headers)

    def start(self) -> None:
        self._thread.start()
        wait_for(lambda: self._server.started)

    def stop(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

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


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., ServiceSettings]:
    def make(**changes: Any) -> ServiceSettings:
        defaults: dict[str, Any] = {
            "teacher": tmp_path / "teacher",
            "cask_root": tmp_path / "casks",
            "data_dir": tmp_path / "state",
            "disk_floor_bytes": 0,
            "chunk_positions": 200,
            "engine_backoff_seconds": 0.01,
            "pause_poll_seconds": 0.05,
        }
        return ServiceSettings(**{**defaults, **changes})

    return make


@pytest.fixture
def serve(make_settings: Callable[..., ServiceSettings]) -> Iterator[Callable[..., RunningServer]]:
    """A function that starts a server: `serve(load=..., seconds_per_document=..., **settings)`."""
    running: list[RunningServer] = []

    def start(
        load: Callable[[], Teacher] | None = None, fake: dict[str, Any] | None = None, **settings: Any
    ) -> RunningServer:
        service = Service(make_settings(**settings), load or (lambda: fake_teacher(**(fake or {}))))
        key = settings.get("api_key")
        server = RunningServer(service, key)
        server.start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    """Forty documents of 2 to 60 tokens, no two alike."""
    return [
        {
            "input_ids": [(7 * number + at) % 600 for at in range(2 + (number * 13) % 59)] + [number],
            "custom_id": f"d{number}",
        }
        for number in range(40)
    ]
