"""What the service's tests share: a real server on loopback with the fake teacher behind it, and a corpus."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from logitcask_services.http.logs import LogLimit
from logitcask_services.settings import ServiceSettings
from tests.support.services.service_harness import StartServer, servers, settings_in


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
    return partial(settings_in, tmp_path)


@pytest.fixture
def serve(make_settings: Callable[..., ServiceSettings]) -> Iterator[StartServer]:
    """See `servers`."""
    with servers(make_settings) as start:
        yield start


@pytest.fixture(scope="module")
def serve_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """As `serve`, for servers that all tests of a file look at and none changes."""
    with servers(partial(settings_in, tmp_path_factory.mktemp("service"))) as start:
        yield start


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
