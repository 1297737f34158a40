"""The line without a shared folder: a service publishes into an object store, a student is trained from that URL."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.model_source import ModelSource
from logitcask_services.cli.serve import load_teacher
from logitcask_services.jobs.loaded_teacher import Role, Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.services.engines.conftest import tiny_llama, tokenizer_saver
from tests.support.schemas.s3_server import bucket, s3_server
from tests.support.services.service_harness import RunningServer

__all__ = ["bucket", "s3_server", "tiny_llama", "tokenizer_saver"]

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


@pytest.fixture
def server(bucket: str, tiny_llama: Path, tmp_path: Path) -> Iterator[RunningServer]:
    """The tiny teacher, on transformers, with its casks in the bucket."""
    settings = ServiceSettings(
        teacher=tiny_llama,
        cask_root=f"{bucket}/casks",
        data_dir=tmp_path / "state",
        engine="transformers",
        engine_process=False,
        disk_floor_bytes=0,
        chunk_positions=400,
    )

    def load(role: Role) -> Teacher:
        return load_teacher(settings, ModelSource(folder=tiny_llama, name="tiny"), role)

    server = RunningServer(Service(settings, load), None)
    server.start()
    yield server
    server.stop()


def test_what_is_served_into_a_bucket_trains_a_student(
    server: RunningServer, bucket: str, tiny_llama: Path, tmp_path: Path
) -> None:
    program = ROOT / ".venv" / "trainer" / "bin" / "logitcask"
    assert program.exists(), f"no trainer environment at {program}; run `make install`"
    lines = [{"text": " ".join(f"w{2 + (7 * at + 3 * place) % 290}" for place in range(60))} for at in range(60)]
    done = server.finish(server.submit(server.upload(lines), cask="docs")["id"], 300)
    assert done["status"] == "completed", done["error"]
    url = f"{bucket}/casks/docs"
    cask = Cask.open(url, cache=tmp_path / "looking")
    assert (len(cask), len(cask.entries) > 5) == (60, True)
    output = tmp_path / "student"
    trained = subprocess.run(
        [
            program, "train", "--cask", url, "--cache", tmp_path / "cache", "--teacher", tiny_llama,
            "--student", "from-teacher:layers=1", "--output", output, "--epochs", "4", "--seq-len", "128",
            "--batch-tokens", "512", "--micro-tokens", "512", "--lr", "3e-3",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-4000:]
    assert (output / "config.json").exists()
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert losses[-1] < losses[0]
    assert list((tmp_path / "cache").rglob("*.arrow")), "through the cache"
