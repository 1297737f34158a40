"""pyproject.toml: entry points that resolve, extras that keep the two sides and the two kinds of torch apart."""

import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def locked(side: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{side}-cpu.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def required(extra: str, environment: dict[str, str]) -> Iterator[Requirement]:
    """Requirements of an extra on this platform, those of the project's own extras among them."""
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.name == "logitcask":
            for inner in requirement.extras:
                yield from required(inner, environment)
        elif requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement


@pytest.mark.parametrize(
    ("side", "extras"),
    [("teacher", ("teacher-cpu", "dev", "dev-teacher")), ("trainer", ("trainer-cpu", "dev", "dev-trainer"))],
)
def test_the_lock_holds_a_version_of_every_requirement(side: str, extras: tuple[str, ...]) -> None:
    """Run `make lock` after a change of pyproject.toml."""
    versions, environment = locked(side), {"sys_platform": "linux"}
    requirements = [*map(Requirement, PYPROJECT["project"]["dependencies"])]
    requirements += [requirement for extra in extras for requirement in required(extra, environment)]
    wrong = [
        str(requirement)
        for requirement in requirements
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"), prereleases=True)
    ]
    assert wrong == []


def test_a_lock_without_a_requirement_would_be_noticed() -> None:
    assert not Requirement("mkdocs-material>=9.6").specifier.contains("0")
    assert "torch" in locked("trainer")
