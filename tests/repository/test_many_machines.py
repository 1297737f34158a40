"""deploy/ for many machines: manifests by their schemas, scripts by the shell, commands by the command line."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from logitcask_schemas.cli.main import load_command

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="in the `dev` extra: Kubernetes' schemas")

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "deploy/slurm/capture.sh"
JOB = ROOT / "deploy/kubernetes-capture/capture-job.yaml"
RAY_JOB = ROOT / "deploy/ray/capture-rayjob.yaml"
SKY = ROOT / "deploy/skypilot/capture.yaml"
KUBERNETES = "1.31"
RAY_JOB_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": {"type": "string"},
                "backoffLimit": {"type": "integer"},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "rayClusterSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["headGroupSpec"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "enableInTreeAutoscaling": {"type": "boolean"},
                        "headGroupSpec": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["rayStartParams", "template"],
                            "properties": {"rayStartParams": {"$ref": "#/$defs/strings"}, "template": {}},
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["groupName", "rayStartParams", "template"],
                                "properties": {
                                    "groupName": {"type": "string"},
                                    "replicas": {"type": "integer"},
                                    "minReplicas": {"type": "integer"},
                                    "maxReplicas": {"type": "integer"},
                                    "rayStartParams": {"$ref": "#/$defs/strings"},
                                    "template": {},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    "$defs": {"strings": {"type": "object", "additionalProperties": {"type": "string"}}},
}
"""The fields of KubeRay's RayJob that we use; the pods in it are Kubernetes' own and checked by its schema."""
SKY_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["resources", "run"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?$"},
        "envs": {"type": "object", "additionalProperties": {"type": "string"}},
        "volumes": {"type": "object", "additionalProperties": {"type": "string"}},
        "workdir": {"type": "string"},
        "setup": {"type": "string"},
        "run": {"type": "string"},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "accelerators": {"type": "object", "additionalProperties": {"type": "integer"}},
                "use_spot": {"type": "boolean"},
                "disk_size": {"type": "integer"},
                "job_recovery": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "strategy": {"enum": ["EAGER_NEXT_REGION", "FAILOVER"]},
                        "max_restarts_on_errors": {"type": "integer"},
                    },
                },
            },
        },
    },
}
"""The fields of a SkyPilot task that we use."""


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def parse(words: list[str]) -> dict[str, Any]:
    """What `logitcask WORDS` would be called with, without running it; click's errors where it would be refused."""
    group = load_command(words[0])
    context = group.make_context(words[0], list(words[1:]))
    arguments = [*context._protected_args, *context.args]
    _, command, rest = group.resolve_command(context, arguments)
    parameters: dict[str, Any] = command.make_context("corpus", rest, parent=context).params
    return parameters


def words_of(script: str, variables: dict[str, str]) -> list[str]:
    """The words behind `logitcask` of a script's one call of it."""
    for name, value in sorted(variables.items(), key=lambda entry: -len(entry[0])):
        script = script.replace(f"${name}", value)
    joined = script.replace("\\\n", " ")
    call = re.findall(r"logitcask (capture .+)$", joined, re.MULTILINE)[-1]
    return shlex.split(call)


def test_the_job_is_valid_and_hardened():
    document = load(JOB)
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    pod = document["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    rules = document["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["containerName"] == container["name"]
    document["spec"]["completionMod"] = "Indexed"
    with pytest.raises(jsonschema.ValidationError, match="completionMod"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_parts_of_the_job_are_its_completions():
    document = load(JOB)
    words = document["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[-1] == f"$(JOB_COMPLETION_INDEX)/{document['spec']['completions']}"
    assert parse([*words[:-1], "7/8"])["part"] == "7/8"


def test_the_ray_job_is_valid():
    document = load(RAY_JOB)
    jsonschema.validate(document, RAY_JOB_SCHEMA)
    cluster = document["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "checked"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        container = group["template"]["spec"]["containers"][0]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    words = words_of(document["spec"]["entrypoint"], {})
    called = parse(words)
    assert (called["executor"], called["teachers"]) == ("ray", cluster["workerGroupSpecs"][0]["maxReplicas"])
    assert cluster["rayVersion"] in (ROOT / "requirements/teacher-cpu.txt").read_text()


def test_the_check_of_ray_jobs_can_fail():
    document = load(RAY_JOB)
    document["spec"]["rayClusterSpec"]["workerGroupSpec"] = []
    with pytest.raises(jsonschema.ValidationError, match="workerGroupSpec"):
        jsonschema.validate(document, RAY_JOB_SCHEMA)


def test_the_skypilot_task():
    document = load(SKY)
    jsonschema.validate(document, SKY_SCHEMA)
    called = parse(words_of(document["run"], document["envs"]))
    assert called["part"] == "0/4"
    # No registry has the package: it is installed from the clone, which the machine is given.
    assert (document["workdir"], document["setup"].strip()) == (".", 'pip install ".[teacher]"')
    document["resource"] = {}
    with pytest.raises(jsonschema.ValidationError, match="resource"):
        jsonschema.validate(document, SKY_SCHEMA)


def test_the_slurm_script(tmp_path):
    assert os.access(SLURM, os.X_OK)
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    text = SLURM.read_text()
    last = int(re.findall(r"^#SBATCH --array=0-(\d+)$", text, re.MULTILINE)[0])
    assert f"PARTS={last + 1}\n" in text
    # GPUs of a task ask for the number of tasks.
    assert {"#SBATCH --ntasks=1", "#SBATCH --gpus-per-task=1"} <= set(text.splitlines())
    # Run it with an srun that says what it was given.
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "5", "SLURM_CPUS_PER_TASK": "8"}
    environment |= {"SHARED": "/with space"}
    said = subprocess.run(["bash", str(SLURM)], env=environment, capture_output=True, text=True, check=True).stdout
    own, *words = said.splitlines()
    assert own == "--cpus-per-task=8"
    assert words[0] == "logitcask"
    called = parse(words[1:])
    assert called["part"] == f"5/{last + 1}"
    assert called["cask"] == "/with space/casks/mine"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on this machine")
def test_shellcheck_is_content():
    subprocess.run(["shellcheck", str(SLURM)], check=True)
