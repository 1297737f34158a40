"""`logitcask tasks from-json`: a file of questions in, a task that `logitcask report` reads out."""

import json
from typing import Any

import pytest
import typer

from logitcask_consumer.cli import tasks
from logitcask_consumer.tasks.harness import load_task, requests_of
from logitcask_consumer.tasks.task_file import read_task


def run(*arguments):
    typer.main.get_command(tasks.app).main(list(map(str, arguments)), standalone_mode=False)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "legs.json"
    rows = [{"question": f"Has animal {n} legs?", "choices": ["no", "yes"], "answer": "yes"} for n in range(12)]
    path.write_text(json.dumps(rows))
    return path


def test_a_task_is_written_and_read(questions, tmp_path, capsys):
    run("from-json", questions, "--output", tmp_path / "set", "--shots", 2)
    assert "legs.yaml: 10 questions with choices" in " ".join(capsys.readouterr().err.split())
    requests = requests_of(load_task(read_task(tmp_path / "set" / "legs.yaml")))
    shown = "Question: Has animal 0 legs?\nAnswer: yes\n\nQuestion: Has animal 1 legs?\nAnswer: yes\n\n"
    assert requests[:2] == [(f"{shown}Question: Has animal 2 legs?\nAnswer:", answer) for answer in (" no", " yes")]
    assert len(requests) == 20


def test_letters_and_prompts(questions, tmp_path, capsys):
    run("from-json", questions, "--output", tmp_path, "--name", "lettered", "--letters", "--json")
    assert json.loads(capsys.readouterr().out) == {"task": str(tmp_path / "lettered.yaml"), "questions": 12}
    requests = requests_of(load_task(read_task(tmp_path / "lettered.yaml")))
    listed = "Question: Has animal 0 legs?\nA. no\nB. yes\nAnswer:"
    assert requests[:2] == [(listed, " A"), (listed, " B")]
    run("from-json", questions, "--output", tmp_path, "--name", "own", "--prompt", "Q {{question}} A")
    assert requests_of(load_task(read_task(tmp_path / "own.yaml")))[0] == ("Q Has animal 0 legs? A", " no")


def test_options_are_a_promise():
    group: Any = typer.main.get_command(tasks.app)
    command = group.commands["from-json"]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
    assert options - {"--help"} == {"--output", "-o", "--name", "--shots", "--letters", "--prompt", "--json"}
