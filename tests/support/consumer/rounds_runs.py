"""Runs in rounds within the tests' own process."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from logitcask_consumer.rounds.capture import CaptureError
from logitcask_consumer.rounds.config import RoundsConfig
from logitcask_consumer.rounds.driver import RoundsResult, run_rounds
from tests.support.consumer.fake_service import FakeService


def weights(folder: Path) -> dict[str, Tensor]:
    """Of a trained student."""
    return load_file(folder / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(settings: Mapping[str, Any], **more: Any) -> tuple[RoundsResult, list[str]]:
    """A run to its end, and what it said."""
    said: list[str] = []
    result = run_rounds(RoundsConfig(**{**settings, **more}), say=said.append)
    # As of `timeout`: the run takes it for its own, ends politely, and the test would fail for a reason that is none.
    assert not result.stopped, "a signal to the tests' own process ended this run"
    return result, said


def run_first_only(settings: Mapping[str, Any], service: FakeService) -> None:
    """Round 1 and the texts of round 2, whose extraction fails."""
    started = service._start

    def start(request: Any, key: Any) -> Any:
        if request["cask"].endswith("r0002"):
            service.fail = "the second fails"
        return started(request, key)

    setattr(service, "_start", start)  # noqa: B010 - a method
    with pytest.raises(CaptureError):
        run(settings)
    setattr(service, "_start", started)  # noqa: B010 - as above
