"""What the service's tests share: a real server on loopback with the fake teacher behind it, and a corpus."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from logitcask_services.http.connections import ConnectionLimits
from logitcask_services.http.logs import LogLimit
from logitcask_services.jobs.loaded_teacher import LoadHinted, Teacher
from logitcask_services.jobs.roster import Roster
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.services.fake_teacher import fake_teacher
from tests.support.services.service_harness import RunningServer


@pytest.fixture(autouse=True)
def logs_of_this_test() -> Iterator[None]:
    """A test that configures the log leaves neither a handler of its own stderr nor a limit to the tests after it."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in handlers:  # pytest's own are of its own types
            logging.root.removeHandler(handler)
    logging.root.setLevel(level)
    for logger in map(logging.getLogger, list(logging.root.manager.loggerDict)):
        for limit in [entry for entry in logger.filters if isinstance(entry, LogLimit)]:
            logger.removeFilter(limit)


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
        key = settings.get("api_key")
        server = RunningServer(service, key, limits)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
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
