"""Rounds against the real service: texts over HTTP to a real engine, casks on a shared folder, a student that learns.

The teacher is tiny and its engine the reference one; the service restarts between two rounds.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitcask_consumer.rounds.config import RoundsConfig
from logitcask_consumer.rounds.driver import run_rounds
from logitcask_consumer.rounds.prompts import read_prompts
from logitcask_consumer.rounds.samples import read_chunks
from logitcask_consumer.rounds.state import read_state
from logitcask_schemas.api.connection import ServiceError
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.model_source import find_model
from logitcask_services.cli.serve import require_teachers
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.consumer.cask_builder import dense_positions, save_teacher, tiny_model, tiny_tokenizer
from tests.support.services.service_harness import RunningServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@contextmanager
def serving(folder: Path, teacher: str, students: Path | None = None) -> Iterator[RunningServer]:
    """The service with a teacher of the folder; jobs and casks stay from one to the next."""
    settings = ServiceSettings(
        teacher=folder / teacher,
        students=students,
        cask_root=folder / "casks",
        engine="transformers",
        dtype="float32",
        disk_floor_bytes=0,
        chunk_positions=200,
    )
    server = RunningServer(Service(settings, require_teachers(settings)), None)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_teacher(tmp_path / "teacher")
    save_teacher(tmp_path / "another", seed=9)
    tiny_model(layers=2, seed=1).save_pretrained(tmp_path / "student")
    tiny_tokenizer().save_pretrained(tmp_path / "student")
    lines = [{"prompt": f"w{number + 2} w{2 * number + 3}"} for number in range(24)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def config(folder: Path, server: RunningServer, **more: Any) -> RoundsConfig:
    settings: dict[str, Any] = {
        "recipe": "minillm",
        "prompts": folder / "prompts.jsonl",
        "student": str(folder / "student"),
        "server": server.url,
        "output": folder / "run",
        "cask_root": folder / "casks",
        "rounds": 2,
        "steps_per_round": 3,
        "max_new_tokens": 16,
        "seq_len": 64,
        "batch_tokens": 256,
        "lr": 3e-3,
        "patience_seconds": 60.0,
    }
    return RoundsConfig(**{**settings, **more})


class Interrupted(Exception):
    """What a test ends a run with."""


def interrupted_at(start: str) -> Any:
    """Ends a run where it says a line with this start."""

    def say(line: str) -> None:
        if line.startswith(start):
            raise Interrupted

    return say


def test_rounds_go_on_over_a_restart_and_refuse_another_teacher(folder: Path) -> None:
    with serving(folder, "teacher") as server, pytest.raises(Interrupted):
        run_rounds(config(folder, server), say=interrupted_at("round 2 of 2: "))
    state = read_state(folder / "run")
    assert state is not None
    assert [own.stage for own in state.rounds] == ["trained"], "the second was not begun before its texts were there"
    with serving(folder, "another") as server, pytest.raises(IdentityMismatchError) as refused:
        run_rounds(config(folder, server))
    assert state.teacher is not None
    assert str(state.teacher.tensors_digest) in str(refused.value)
    with serving(folder, "teacher") as server:
        result = run_rounds(config(folder, server))
    assert result.state.status == "finished"
    assert [own.stage for own in result.state.rounds] == ["trained", "trained"]


def test_the_casks_hold_what_the_teacher_says_of_the_students_texts(folder: Path) -> None:
    """Against a dense pass over each text: the next token's log-probability at each written token, and no other."""
    with serving(folder, "teacher") as server:
        result = run_rounds(config(folder, server, rounds=1))
    cask = Cask.open(folder / "casks" / "run.r0001")
    lines = [json.loads(line) for line in (folder / "run/rounds/0001/corpus.jsonl").read_text().splitlines()]
    recorded = {tuple(line["input_ids"]): line["recorded"] for line in lines}
    assert len(cask) == len(recorded) == result.state.rounds[0].documents
    teacher = find_model(folder / "teacher")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher.folder)
    for at in range(len(cask)):
        document = cask.read(at)
        ids = np.asarray(document.token_ids_L)
        ((start, stop),) = recorded[tuple(ids.tolist())]
        assert document.extent.positions(len(ids)).tolist() == list(range(start, stop))
        dense = np.log(dense_positions(model, ids).probs_RV[np.arange(start, stop), ids[start + 1 : stop + 1]])
        rows_H = np.repeat(np.arange(stop - start), document.records.head_counts_P)
        is_next_H = document.records.head_ids_H == ids[start + 1 : stop + 1][rows_H]
        np.testing.assert_allclose(document.records.head_logprobs_H[is_next_H], dense, rtol=2e-3, atol=2e-3)


def test_the_service_writes_the_students_texts_and_the_teachers(folder: Path) -> None:
    """MiniLLM with teacher-mixed sampling; the service loads the student of each round, and the probe finds it so."""
    students = folder / "students"
    students.mkdir()
    with serving(folder, "teacher", students) as server:
        result = run_rounds(config(folder, server, sampler="service", students=students, teacher_mix=0.3))
    assert result.state.status == "finished"
    assert list(students.iterdir()) == []
    for own in result.state.rounds:
        assert own.sampled is not None
        assert 0 < own.sampled.by_teacher < own.sampled.texts == 24
        assert own.writing == 0
    (first, *_) = read_chunks(folder / "run/rounds/0001/samples.jsonl")
    prompts = read_prompts(folder / "prompts.jsonl", tiny_tokenizer(), longest=40)
    for text in first:
        assert text.input_ids[: -text.sampled] == prompts.ids[text.prompt], "the exact prompt, and nothing before it"


def test_a_service_with_another_folder_of_students_says_so(folder: Path) -> None:
    """The student is saved where the service does not look."""
    for name in ("students", "elsewhere"):
        (folder / name).mkdir()
    with serving(folder, "teacher", folder / "students") as server, pytest.raises(ServiceError, match="students/"):
        run_rounds(config(folder, server, sampler="service", students=folder / "elsewhere"))
