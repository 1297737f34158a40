"""compose.yaml against the Compose specification, and the promises the guides make of it."""

import copy
import re
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


@pytest.mark.parametrize("name", ["teacher", "teacher-cpu", "trainer", "trainer-cpu"])
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
    assert services["trainer-cpu"]["profiles"] == ["train-cpu"]
    without = {name for name, service in services.items() if "deploy" not in service}
    assert without == {"teacher-cpu", "trainer-cpu"}, "a reservation of a GPU starts nothing where there is none"
    for name in ("teacher", "teacher-cpu"):
        assert "/health/ready" in services[name]["healthcheck"]["test"][-1]
        assert services[name]["healthcheck"]["start_period"] == "3600s", "as long as a teacher may load"
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])


def test_dockerfiles_exist_and_build_the_named_targets(document: dict[str, Any]) -> None:
    for service in document["services"].values():
        text = (ROOT / service["build"]["dockerfile"]).read_text()
        target = service["build"].get("target")
        assert target is None or f" AS {target}\n" in text
        assert all(f"ARG {name}=" in text for name in service["build"].get("args", {}))
        assert "USER 10001:10001" in text


REFERENCE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


def interpolated(text: str, variables: dict[str, str]) -> str:
    """The text as compose reads it; raises KeyError for a variable that is neither set nor has a default."""

    def value(match: re.Match[str]) -> str:
        default = match["default"]
        return variables[match["name"]] if default is None else variables.get(match["name"]) or default

    return REFERENCE.sub(value, text)


@pytest.mark.parametrize(
    ("variables", "port", "keys"),
    [
        ({}, "127.0.0.1:8000:8000", "./keys.toml"),
        ({"LOGITCASK_PORT": "9000", "LOGITCASK_KEYS": "/etc/keys.toml"}, "127.0.0.1:9000:8000", "/etc/keys.toml"),
    ],
)
def test_variables_have_defaults(schema: dict[str, Any], variables: dict[str, str], port: str, keys: str) -> None:
    text = interpolated((ROOT / "compose.yaml").read_text(), variables)
    assert "${" not in text
    loaded = {name: value for name, value in yaml.safe_load(text).items() if not name.startswith("x-")}
    assert problems(loaded, schema) == []
    assert loaded["services"]["teacher"]["ports"] == [port]
    assert loaded["secrets"]["keys"]["file"] == keys


def test_a_variable_without_default_is_noticed() -> None:
    with pytest.raises(KeyError, match="NOWHERE"):
        interpolated("image: ${NOWHERE}", {})


def test_the_teachers_option_is_valid(schema: dict[str, Any], document: dict[str, Any]) -> None:
    override = yaml.safe_load((ROOT / "deploy/compose/teachers.yaml").read_text())
    assert problems(override, schema) == []
    assert set(override["services"]) <= set(document["services"])
    sources = {volume.split(":")[0] for volume in override["services"]["teacher"]["volumes"]}
    assert "students" in sources & set(document["volumes"])


@pytest.mark.parametrize("name", ["teacher", "teacher-cpu", "trainer", "trainer-cpu"])
def test_services_are_limited(document: dict[str, Any], name: str) -> None:
    service = document["services"][name]
    assert service["ulimits"]["nofile"] == {"soft": 65536, "hard": 65536}
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "50m", "max-file": "5"}}


def test_keys_are_a_file_and_the_trainer_has_none(document: dict[str, Any]) -> None:
    services = document["services"]
    for name in ("teacher", "teacher-cpu"):
        assert services[name]["environment"]["LOGITCASK_API_KEY_FILE"] == "/run/secrets/keys.toml"
        assert services[name]["secrets"] == [{"source": "keys", "target": "keys.toml"}]
        assert "LOGITCASK_API_KEY" not in services[name]["environment"]
    for name in ("trainer", "trainer-cpu"):
        assert "secrets" not in services[name]
        assert "ports" not in services[name]
        assert services[name]["network_mode"] == "none"
        assert "casks:/casks:ro" in services[name]["volumes"]


def test_every_named_volume_is_a_folder_of_the_image(document: dict[str, Any]) -> None:
    """Docker gives a new volume the owner of the image's folder: without one it is root's, and cannot be written to."""
    for service in document["services"].values():
        text = (ROOT / service["build"]["dockerfile"]).read_text()
        made = set(" ".join(re.findall(r"install -d -o 10001 -g 10001 (.+)", text)).split())
        assert {volume.removesuffix(":ro").split(":")[-1] for volume in service["volumes"]} <= made
