"""pyproject.toml: entry points that resolve, extras that keep the two sides and the two kinds of torch apart."""

import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize("entry", PYPROJECT["project"]["entry-points"]["logitcask.commands"].values())
def test_command_modules_exist(entry: str) -> None:
    assert find_spec(entry.split(":")[0]) is not None


def names(extra: str) -> set[str]:
    return {requirement.split("=")[0].split(">")[0].split(";")[0].strip() for requirement in EXTRAS[extra]}


def test_extras_keep_the_sides_apart() -> None:
    assert "vllm" in names("teacher")
    for extra in ("trainer", "trainer-cpu", "service", "dev"):
        assert not any("vllm" in name for name in names(extra)), extra


@pytest.mark.parametrize("extra", ["teacher-cpu", "trainer-cpu"])
def test_cpu_extras_cannot_take_a_cuda_torch(extra: str) -> None:
    pins = [requirement for requirement in EXTRAS[extra] if requirement.startswith("torch==")]
    assert pins
    assert all("+cpu" in pin or "sys_platform == 'darwin'" in pin for pin in pins)


def test_the_service_extra_leaves_torch_to_the_engine() -> None:
    assert "torch" not in names("service")
