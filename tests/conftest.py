"""What all tests share: no deadlines for examples, names that do not change, and which files share a process."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of what is tested.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def torch_stays() -> Iterator[None]:
    """Commands run in the process of the tests, whose models need a transformers that has torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logitcask_schemas.cli.tokenizers.leave_torch_out", lambda: None)
        yield


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes give a test no name: a gzip's holds the second it was packed in, so two processes would name it twice."""
    return argname if isinstance(val, bytes | bytearray) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A real engine may take minutes to start where all other tests run beside it."""
    for item in items:
        is_of_engines = any(item.nodeid.startswith(files) for files in ENGINES.values())
        if is_of_engines and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(ENGINE_SECONDS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests share a process, and with it what they set up; so do tests of real engines that share an engine.

    As `--dist loadfile`, but for the engines: more than two of them at once would need the memory and the cores.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return next((group for group, files in ENGINES.items() if file.startswith(files)), file)

    return Scheduling(config, log)


ENGINES = {
    "engines of their own": (
        "tests/conformance/engines/test_draft_check",
        "tests/conformance/engines/test_hints",
        "tests/conformance/engines/test_remote",
        "tests/e2e/",
    ),
    "one engine": ("tests/conformance/engines/",),
}
"""Files that start real engines, by the process that they share; each is of the first that it fits."""
ENGINE_SECONDS = 1200
"""A test of them may take."""
