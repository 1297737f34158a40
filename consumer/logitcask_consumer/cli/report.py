"""`logitcask report`: students beside their teacher on held-out documents."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from logitcask_consumer.cli.common import (
    JsonOption,
    labelled_path,
    messages,
    output_option,
    print_json,
    quiet_transformers,
)
from logitcask_schemas.cli.output import console as stdout
from logitcask_schemas.errors import ModelError
from logitcask_schemas.local_paths import local_folder

app = typer.Typer(help="Compare student, baseline and teacher on held-out documents.", add_completion=False)


@app.command()
def report(
    cask: Annotated[
        list[Path], typer.Option("--cask", help="Held-out cask; may be given several times.", show_default=False)
    ],
    output: Annotated[Path, output_option("Folder for report.md, report.html, report.json and plots.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="label=folder of a model, or its Hub id; repeated for more. Every two are compared.",
            show_default=False,
        ),
    ] = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoints",
            help="Output folder of a training run (or label=folder): all its checkpoints, as label@step.",
        ),
    ] = None,
    train_log: Annotated[
        list[str] | None,
        typer.Option("--train-log", help="Output folder of a training run (or label=folder), for the loss curve."),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", help="Tokens of a window; default: what each model can take, at most 4,096.", min=2),
    ] = None,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", help="Tokens per forward pass.", min=1)] = 4096,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            "--teacher",
            help="The teacher's folder or Hub id (its tokenizer is read, with --speed its weights): adds bits per "
            "byte, and allows models with a tokenizer of their own. Given again for casks of other tokenizers.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap, and of perturbations.")] = 0,
    token_scores: Annotated[
        bool, typer.Option("--token-scores", help="Write each model's KL at each token, for `logitcask view --scores`.")
    ] = False,
    draft_length: Annotated[
        list[int] | None,
        typer.Option(
            "--draft-length", help="Drafted tokens of a speculative step (4); may be given several times.", min=1
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            "--control",
            help="ce: also train the last model's student without the teacher (same data, steps, seed), and tell which "
            "share of the gap is closed.",
        ),
    ] = None,
    generate: Annotated[
        int,
        typer.Option(
            "--generate",
            help="Let each model write after the prompts of so many held-out documents with answers: ROUGE-L, variety, "
            "loops.",
            min=0,
        ),
    ] = 0,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed", help="Measure tokens/s and memory of models, and of --teacher if its weights are there."
        ),
    ] = False,
    card: Annotated[
        list[str] | None,
        typer.Option("--card", help="Label of a model whose folder gets a README.md with these results; repeatable."),
    ] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(
            "--tasks",
            help="Task file of lm-evaluation-harness (extra `tasks`), or a folder of some; repeatable. Models, and "
            "--teacher if its weights are there, are asked the questions.",
        ),
    ] = None,
    perturb: Annotated[
        str | None,
        typer.Option(
            "--perturb",
            help="Ask the tasks again with changes: typos, case, words, punctuation, whitespace, order; joined by "
            "commas, perhaps with a rate (typos:0.1).",
        ),
    ] = None,
    task_code: Annotated[
        bool, typer.Option("--task-code", help="Run the Python that task files name by !function; read it before.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure models on held-out documents and write a report with intervals and plots."""
    quiet_transformers()
    from logitcask_consumer.report.config import ReportConfig
    from logitcask_consumer.report.counted_work import CountedWork
    from logitcask_consumer.report.make_report import make_report
    from logitcask_consumer.run_document import require_finished
    from logitcask_consumer.tasks.perturbations import parse_perturbations
    from logitcask_schemas.model_source import is_hub_id

    models, logs, runs = (tuple(map(labelled_path, option or ())) for option in (model, train_log, checkpoints))
    for label, folder in models:
        if is_hub_id(str(folder)):
            continue
        if not folder.is_dir():
            raise ModelError(
                f"model {label!r}: there is no folder {folder}; name it as label=folder, or a model of the Hub as "
                "label=ORG/NAME"
            )
        require_finished(folder)
    config = ReportConfig(
        casks=tuple(map(local_folder, cask)),
        models=models,
        train_logs=logs,
        runs=runs,
        control=control,
        generate=generate,
        speed=speed,
        cards=tuple(card or ()),
        **({"draft_lengths": tuple(dict.fromkeys(draft_length))} if draft_length else {}),
        output=output,
        seq_len=seq_len,
        batch_tokens=batch_tokens,
        seed=seed,
        token_scores=token_scores,
        teacher=teacher[0] if teacher else None,
        other_teachers=tuple(teacher[1:]) if teacher else (),
        tasks=tuple(tasks or ()),
        perturb=parse_perturbations(perturb) if perturb is not None else (),
        task_code=task_code,
    )
    console = messages()
    document = make_report(config, say=console.print, counting=CountedWork(console))
    if as_json:
        print_json(document)
        return
    for of_teacher in document.get("teachers", [document]):
        if "label" in of_teacher:
            stdout().print(f"{of_teacher['label']}, of {of_teacher['cask']['teacher']['model']}:")
        _print_table(of_teacher, console)
    console.print(f"report: {output / 'report.html'} (for people), report.md, report.json")


def _print_table(document: dict[str, Any], console: Console) -> None:
    """The figures of one teacher's report on stdout, and what the records do not say on stderr."""
    from logitcask_consumer.report.markdown import acceptance_line, short_table

    heading, rows = short_table(document)
    table = Table(*(Column(title, justify="left" if not title else "right") for title in heading))
    for row in rows:
        table.add_row(*row)
    stdout().print(table)
    if bracket := acceptance_line(document):
        console.print(bracket)
