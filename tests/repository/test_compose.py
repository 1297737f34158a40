"""compose.yaml against the Compose specification, and the promises the guides make of it."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from compose_viz.spec.compose_spec import ComposeSpecification

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The specification's schema, in the form compose-viz generates from compose-spec.json."""
    return ComposeSpecification.model_json_schema()


@pytest.fixture
def document() -> dict[str, Any]:
    """compose.yaml without its top-level extension fields.

    The specification admits any `x-...` key; the generated form of its schema loses that pattern.
    """
    loaded = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return {name: value for name, value in loaded.items() if not name.startswith("x-")}


def problems(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


def test_compose_file_is_valid(document: dict[str, Any], schema: dict[str, Any]) -> None:
    assert problems(document, schema) == []


@pytest.mark.parametrize(
    ("service", "key", "value"),
    [
        ("teacher", "read_onli", True),
        ("trainer", "volumes", "casks:/casks"),
        ("teacher-cpu", "healthcheck", {"tst": "x"}),
    ],
)
def test_the_check_can_fail(
    document: dict[str, Any], schema: dict[str, Any], service: str, key: str, value: Any
) -> None:
    broken = copy.deepcopy(document)
    broken["services"][service][key] = value
    assert problems(broken, schema) != []


@pytest.mark.parametrize("name", ["teacher", "teacher-cpu", "trainer"])
def test_services_are_hardened(document: dict[str, Any], name: str) -> None:
    service = document["services"][name]
    assert service["read_only"] is True
    assert service["user"].split(":")[0] not in {"0", "root"}
    assert service["cap_drop"] == ["ALL"]
    mounts = {volume.split(":")[-2 if volume.endswith(":ro") else -1] for volume in service["volumes"]}
    assert {"/casks", "/models"} <= mounts


def test_profiles_and_health(document: dict[str, Any]) -> None:
    services = document["services"]
    assert "profiles" not in services["teacher"], "`docker compose up` starts the GPU teacher"
    assert services["teacher-cpu"]["profiles"] == ["cpu"]
    assert services["trainer"]["profiles"] == ["train"]
    for name in ("teacher", "teacher-cpu"):
        assert "/health" in services[name]["healthcheck"]["test"][-1]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])


def test_dockerfiles_exist_and_build_the_named_targets(document: dict[str, Any]) -> None:
    for service in document["services"].values():
        text = (ROOT / service["build"]["dockerfile"]).read_text()
        target = service["build"].get("target")
        assert target is None or f" AS {target}\n" in text
        assert "USER logitcask" in text
