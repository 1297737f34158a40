"""`logitcask tasks`: questions of your own as tasks for `logitcask report --tasks`."""

from pathlib import Path
from typing import Annotated

import typer

from logitcask_consumer.cli.common import JsonOption, messages, output_option, print_json

app = typer.Typer(help="Make tasks of lm-evaluation-harness from questions of your own.", add_completion=False)


@app.callback()
def tasks() -> None:
    """Make tasks of lm-evaluation-harness from questions of your own."""


@app.command("from-json")
def from_json(
    file: Annotated[
        Path,
        typer.Argument(help="JSON or JSONL of question, answer and, for multiple choice, choices.", metavar="FILE"),
    ],
    output: Annotated[Path, output_option("Folder for NAME.yaml and its data.")],
    name: Annotated[str | None, typer.Option("--name", help="Of the task; default: that of the file.")] = None,
    shots: Annotated[
        int, typer.Option("--shots", help="Show so many of the first questions with their answers before each.", min=0)
    ] = 0,
    letters: Annotated[
        bool, typer.Option("--letters", help="List the choices under the question; the answer is a letter.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Jinja template of the prompt, as '{{question}}'.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a file of questions into a task for `logitcask report --tasks` and for lm-evaluation-harness itself."""
    from logitcask_consumer.tasks.questions import read_questions
    from logitcask_consumer.tasks.write_task import write_task

    questions = read_questions(file)
    path = write_task(
        questions, output, name=file.stem if name is None else name, shots=shots, lettered=letters, prompt=prompt
    )
    if as_json:
        print_json({"task": str(path), "questions": len(questions) - shots})
        return
    kind = "answers to be written" if questions[0].choices is None else "choices"
    messages().print(f"{path}: {len(questions) - shots} questions with {kind}", soft_wrap=True)
