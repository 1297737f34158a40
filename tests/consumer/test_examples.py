"""The training examples run as a user runs them, and the snippets of docs/python.md as they stand there."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, Trainer, TrainingArguments

import logitcask
from logitcask_consumer.tasks.questions import read_questions
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = re.findall(r"^## (.+?)$.*?^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cask, and a student with its tokenizer."""
    folder = tmp_path_factory.mktemp("examples")
    teacher = save_teacher(folder / "teacher")
    build_cask(folder / "casks/mine", teacher, random_documents(24))
    build_cask(folder / "casks/heldout", teacher, random_documents(8, seed=5))
    tiny_model(layers=2, seed=1).save_pretrained(folder / "student/initial")
    tiny_tokenizer().save_pretrained(folder / "student/initial")
    return folder


def moved(before, after):
    """Largest change of a weight."""
    before, after = before.state_dict(), after.state_dict()
    return max(float((before[name] - after[name]).abs().max()) for name in before)


@pytest.mark.parametrize("script", ["plain_loop.py", "own_trainer.py", "accelerate_loop.py"])
def test_a_training_example_trains(place, tmp_path, script):
    arguments = [place / "casks/mine", place / "student/initial", tmp_path / "out", "--seq-len", "64"]
    more = [] if script == "accelerate_loop.py" else ["--steps", "3"]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / script, *arguments, *more],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "ACCELERATE_USE_CPU": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert moved(AutoModelForCausalLM.from_pretrained(place / "student/initial"), student) > 1e-5


def test_the_reading_example_reads(place):
    script = ROOT / "examples/uncertain_tokens.py"
    done = subprocess.run(
        [sys.executable, script, place / "casks/mine", "--tokens", "3"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    cask = logitcask.Cask.open(place / "casks/mine")
    highest = max(float(cask.read(number).records.entropy_P.max()) for number in range(len(cask)))
    assert f"{highest:.2f} nats" in lines[0]


def test_the_questions_of_the_example_are_some(tmp_path):
    script = ROOT / "examples/docstring_cloze.py"
    for name in ("a", "b"):
        subprocess.run([sys.executable, script, tmp_path / name, "--count", "30"], capture_output=True, check=True)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    questions = read_questions(tmp_path / "a")
    assert len({question.text for question in questions}) == 30
    assert {question.answer for question in questions} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("title", "code"),
    # That of the service runs beside one, in tests/services.
    [pytest.param(title, code, id=title) for title, code in SNIPPETS if title != "The service"],
)
def test_snippets_run_and_stay_short(place, monkeypatch, title, code):
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 10
    monkeypatch.chdir(place)
    model = tiny_model(layers=2, seed=1).train()
    tokenizer = tiny_tokenizer()
    names = {name: getattr(logitcask, name) for name in logitcask.__all__ if name not in ("ServiceClient",)}
    scope = names | {
        "torch": torch,
        "Path": Path,
        "DataLoader": DataLoader,
        "Trainer": Trainer,
        "TrainingArguments": partial(TrainingArguments, report_to="none", use_cpu=True, save_strategy="no"),
        "model": model,
        "tokenizer": tokenizer,
        "dataset": logitcask.CaskDataset.open("casks/mine", tokenizer=tokenizer, seq_len=512),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-4),
        "accelerator": Accelerator(cpu=True),
    }
    exec(compile(code, title, "exec"), scope)
    if "loss" in scope:
        assert moved(tiny_model(layers=2, seed=1), model) > 1e-6


def test_there_are_snippets_of_a_loop_a_trainer_and_accelerate():
    assert [title for title, _ in SNIPPETS[:3]] == ["A plain loop", "A Trainer of your own", "Accelerate"]


def test_the_snippet_of_the_trainer_runs(place, monkeypatch):
    [code] = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/training.md").read_text(), re.M | re.S)
    monkeypatch.chdir(place)
    scope = {name: getattr(logitcask, name) for name in ("CaskDataset", "DistillTrainer")} | {
        "DistillConfig": partial(logitcask.DistillConfig, report_to="none", use_cpu=True),
        "EarlyStoppingCallback": EarlyStoppingCallback,
        "model": tiny_model(layers=2, seed=1),
        "tokenizer": tiny_tokenizer(),
    }
    exec(compile(code, "docs/training.md", "exec"), scope)
    assert moved(tiny_model(layers=2, seed=1), scope["model"]) > 1e-6
