"""deploy/ and the images: valid by their schemas, accepted by the command line, and of one mind with each other."""

import re
import shlex
import shutil
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from logitcask_schemas.cli.main import load_command
from scripts.rehearse_images import DOCKERFILES, Stage, missing_sources, stages

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="in the `dev` extra: Kubernetes' schemas")

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy/systemd/logitcask.service"
MANIFESTS = ROOT / "deploy/kubernetes"
KUBERNETES = "1.31"


def documents() -> list[dict[str, Any]]:
    files = [path for path in sorted(MANIFESTS.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return list(chain.from_iterable(yaml.safe_load_all(path.read_text()) for path in files))


def of_kind(kind: str) -> dict[str, Any]:
    return next(document for document in documents() if document["kind"] == kind)


def container(kind: str) -> dict[str, Any]:
    return of_kind(kind)["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_manifests_are_valid(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_check_of_manifests_can_fail() -> None:
    broken = of_kind("StatefulSet")
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(jsonschema.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_the_kustomization_names_every_file_but_the_job_and_the_pod_that_fills_models() -> None:
    named = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    assert {*named, "kustomization.yaml", "models-pod.yaml", "trainer-job.yaml"} == {
        path.name for path in MANIFESTS.iterdir()
    }


@pytest.mark.parametrize("kind", ["StatefulSet", "Job"])
def test_pods_are_hardened(kind: str) -> None:
    pod = of_kind(kind)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {10001}
    security = container(kind)["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {mount["name"] for mount in container(kind)["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_claims_exist() -> None:
    claims = {document["metadata"]["name"] for document in documents() if document["kind"] == "PersistentVolumeClaim"}
    for kind in ("StatefulSet", "Job"):
        volumes = of_kind(kind)["spec"]["template"]["spec"]["volumes"]
        assert {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v} <= claims


def test_the_trainer_reads_casks_alone() -> None:
    mounts = {mount["name"]: mount.get("readOnly", False) for mount in container("Job")["volumeMounts"]}
    assert mounts["casks"] is True
    assert mounts["models"] is True
    assert "keys" not in mounts


def test_probes() -> None:
    teacher = container("StatefulSet")
    assert teacher["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert teacher["livenessProbe"]["httpGet"]["path"] == "/health", "a teacher that loads must not be ended"


def test_ports_and_labels_agree() -> None:
    service, teacher = of_kind("Service")["spec"], of_kind("StatefulSet")
    assert service["selector"] == teacher["spec"]["selector"]["matchLabels"]
    assert service["ports"][0]["port"] == container("StatefulSet")["ports"][0]["containerPort"] == 8000
    policies = [document["spec"] for document in documents() if document["kind"] == "NetworkPolicy"]
    assert policies[0]["podSelector"]["matchLabels"] == service["selector"]
    assert policies[0]["ingress"][0]["ports"][0]["port"] == 8000


def test_compose_and_kubernetes_agree() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for name, kind in (("teacher", "StatefulSet"), ("trainer", "Job")):
        pod = container(kind)
        assert pod["image"] == compose[name]["image"]
        set_by_pod = {variable["name"]: variable["value"] for variable in pod["env"]}
        assert set_by_pod.items() <= compose[name]["environment"].items()
        mounted = {mount["mountPath"] for mount in pod["volumeMounts"]}
        assert {volume.removesuffix(":ro").split(":")[-1] for volume in compose[name]["volumes"]} <= mounted
    assert container("StatefulSet")["args"] == final_stages()["gpu"].command
    grace = of_kind("StatefulSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert compose["teacher"]["stop_grace_period"] == f"{grace}s"
    assert f"TimeoutStopSec={grace}" in UNIT.read_text()


def final_stages() -> dict[str, Stage]:
    return {stage.name: stage for path in DOCKERFILES for stage in stages(ROOT / path)}


def parse(words: list[str]) -> None:
    """Raises click's errors where the command line would refuse the words; runs nothing."""
    load_command(words[0]).make_context(words[0], list(words[1:]))


def called() -> list[list[str]]:
    compose = yaml.safe_load((ROOT / "deploy/compose/teachers.yaml").read_text())["services"]["teacher"]["command"]
    commands = [compose, container("StatefulSet")["args"], container("Job")["args"], started_by_unit()]
    return [*commands, *(stage.command for stage in final_stages().values() if stage.command[-1] != "--help")]


def started_by_unit() -> list[str]:
    return shlex.split(re.findall(r"^ExecStart=(.+)$", UNIT.read_text(), re.MULTILINE)[0])[1:]


@pytest.mark.parametrize("words", called(), ids=" ".join)
def test_the_command_line_takes_what_is_called(words: list[str]) -> None:
    if words[0] == "train":
        pytest.importorskip("torch")
    parse(words)


def test_the_check_of_commands_can_fail() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["serve", "--cask-rot", "/casks"])


@pytest.mark.parametrize("path", DOCKERFILES)
def test_images_copy_what_is_there(path: str) -> None:
    assert missing_sources(ROOT, stages(ROOT / path)) == []


@pytest.mark.parametrize("path", DOCKERFILES)
def test_images_run_as_a_number_and_are_pinned(path: str) -> None:
    for stage in stages(ROOT / path):
        assert stage.user == "10001:10001"
        assert stage.entrypoint == ["logitcask"]
        assert re.search(r":(?!latest$)\S+$", stage.image)


def test_a_missing_source_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text('FROM x:1 AS a\nCOPY pyproject.toml nothing ./\nCMD ["serve"]\n')
    assert missing_sources(ROOT, stages(tmp_path / "Dockerfile")) == ["nothing"]


def test_environment_of_the_unit_is_known() -> None:
    """Every LOGITCASK_ variable that deploy/ and compose set is one of the service's settings."""
    settings = pytest.importorskip("logitcask_services.settings")
    known = {f"LOGITCASK_{name}".upper() for name in settings.ServiceSettings.model_fields}
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["teacher"]["environment"]
    environment = (ROOT / "deploy/systemd/logitcask.env").read_text()
    variables = {*re.findall(r"^(\w+)=", environment, re.MULTILINE), *compose, "LOGITCASK_API_KEY_FILE"}
    assert {name for name in variables if name.startswith("LOGITCASK_")} <= known


def verify(unit: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = UNIT.read_text().replace("/opt/logitcask/bin/logitcask", "/bin/true")  # the program is not installed there
    unit.write_text(text)
    checked = verify(unit)
    assert (checked.returncode, [line for line in checked.stderr.splitlines() if UNIT.name in line]) == (0, [])
    unit.write_text(text.replace("ProtectSystem=strict", "ProtectSystm=strict"))
    assert "ProtectSystm" in verify(unit).stderr
