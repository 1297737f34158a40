"""The whole line on real input: text over HTTP to a vLLM teacher, a cask, a student trained elsewhere, a report.

Runs the demonstration's own steps on a smaller corpus. The service is a real uvicorn server on a real vLLM engine;
training and report run in the trainer's environment, which holds no vLLM.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo import steps
from logitcask_schemas.cask import Cask
from tests.support.services.engine_captures import real_teacher

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 2_400
TRAINING = ("--student", "from-teacher:layers=3", "--epochs", "2", "--batch-tokens", "1024", "--micro-tokens", "1024")
"""The demonstration's ten layers would only take longer."""
pytestmark = [pytest.mark.engine, pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> steps.Places:
    trainer_bin = ROOT / ".venv" / "trainer" / "bin"
    assert (trainer_bin / "logitcask").exists(), f"no trainer environment at {trainer_bin}; run `make install`"
    return steps.Places(
        output=tmp_path_factory.mktemp("line"), teacher_bin=Path(sys.executable).parent, trainer_bin=trainer_bin
    )


@pytest.fixture(scope="module")
def result(places: steps.Places) -> dict[str, Any]:
    # The weights that the other tests of engines have fetched, where they have.
    (places.output / "teacher").symlink_to(real_teacher())
    teacher = steps.fetch_teacher(places)
    corpora = steps.write_corpora(places, TOKENS)
    with corpora["train"].open("a") as lines:
        lines.write('this line is not JSON\n{"nothing": "known"}\n')
    steps.capture(places, teacher, corpora)
    steps.train(places, teacher, *TRAINING)
    return steps.report(places)


def test_every_position_is_in_the_casks(places: steps.Places, result: dict[str, Any]) -> None:
    for name in ("train", "heldout"):
        cask = Cask.open(places.casks / name)
        lines = (places.output / "corpus" / f"{name}.jsonl").read_text().splitlines()
        assert len(cask) == len(lines) - (2 if name == "train" else 0), "every line but the two bad ones"
        assert cask.num_positions == cask.num_tokens - len(cask)
        # Held-out records also hold the log-probabilities of the draws.
        assert cask.num_bytes / cask.num_tokens <= (40 if name == "train" else 60)
        assert cask.manifest.capture.tail_logprobs == (name == "heldout")
        assert cask.manifest.teacher.engine == "vllm"
    job = json.loads((places.output / "captured-train.json").read_text())
    assert "completed" in json.dumps(job)


def test_mass_and_next_tokens(places: steps.Places, result: dict[str, Any]) -> None:
    cask = Cask.open(places.casks / "train")
    document = cask.read(0)
    records = document.records
    starts = np.concatenate([[0], np.cumsum(records.head_counts_P[:-1], dtype=np.int64)])
    head_mass = np.add.reduceat(np.exp(records.head_logprobs_H.astype(np.float64)), starts)
    np.testing.assert_allclose(head_mass + np.exp(records.log_tail_mass_P.astype(np.float64)), 1.0, atol=5e-3)
    for position, next_token in enumerate(document.token_ids_L[1:]):
        head = records.head_ids_H[starts[position] : starts[position] + records.head_counts_P[position]]
        assert next_token in head


def test_verify_finds_nothing(places: steps.Places, result: dict[str, Any]) -> None:
    program = str(places.trainer_bin / "logitcask")
    subprocess.run([program, "cask", "verify", str(places.casks / "train")], check=True)


def test_training_helps(result: dict[str, Any]) -> None:
    before, after = (model["metrics"]["kl"]["value"] for model in result["models"])
    assert after < before


def test_the_report_measures_acceptance_on_text_that_was_held_out(places: steps.Places, result: dict[str, Any]) -> None:
    assert result["kinds"]["acceptance"] == "unbiased"
    assert result["models"][1]["trained_on"] == {"status": "checked", "documents": 0, "unread": [], "chosen_by": 0}
    # So short a line holds out few documents, and the report says what that means.
    held_out = (places.output / "corpus" / "heldout.jsonl").read_text().splitlines()
    assert result["cask"]["documents"] == len(held_out) in range(2, 10)
    assert "too narrow with so few" in (places.report / "report.md").read_text()


def test_the_student_is_a_hugging_face_folder(places: steps.Places, result: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(places.student)
    assert model.config.num_hidden_layers == 3
    assert AutoTokenizer.from_pretrained(places.student).decode([1, 2, 3]) != ""


def test_a_second_run_repeats_nothing(places: steps.Places, result: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in places.casks.rglob("*.arrow")}
    steps.capture(places, places.output / "teacher", steps.write_corpora(places, TOKENS))
    steps.train(places, places.output / "teacher", *TRAINING)
    assert {path: path.stat().st_mtime_ns for path in places.casks.rglob("*.arrow")} == before
