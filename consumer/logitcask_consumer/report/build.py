"""Making a report on the casks of one teacher: measure, estimate, write."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from logitcask_consumer.data import CaskDataset
from logitcask_consumer.data.vocabulary import beyond_tokens_note
from logitcask_consumer.held_out.documents import why_unmeasurable
from logitcask_consumer.held_out.overlap import warnings_of
from logitcask_consumer.report.config import ReportConfig, ReportError, explained_output
from logitcask_consumer.report.control import Control, gap_closed
from logitcask_consumer.report.cost import cost_of, has_weights, machine
from logitcask_consumer.report.counted_work import Counting, uncounted, which_of
from logitcask_consumer.report.document import Measured, build_document
from logitcask_consumer.report.drawing import draw
from logitcask_consumer.report.evaluate import Columns, evaluate_teacher
from logitcask_consumer.report.markdown import to_markdown
from logitcask_consumer.report.page import to_page
from logitcask_consumer.report.plots import task_accuracies
from logitcask_consumer.report.readers import OpenedModels, Readers, device
from logitcask_consumer.report.task_scores import add_tasks
from logitcask_consumer.report.texts import recorded_texts, score_texts
from logitcask_consumer.report.token_scores import token_scores_name, write_token_scores
from logitcask_consumer.run_document import METRICS_NAME
from logitcask_consumer.tasks.suite import TaskSuite
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_schemas.cask import Cask


def report_on(
    config: ReportConfig,
    casks: Sequence[Cask],
    say: Callable[[str], None] = lambda message: None,
    *,
    part: str | None = None,
    control: Control | None = None,
    suite: TaskSuite | None = None,
    counting: Counting = uncounted,
) -> dict[str, Any]:
    """Measure the models on casks of one teacher and write the report; returns its document.

    Args:
        config: the report.
        casks: opened, all of one teacher and capture spec.
        say: receives messages for people.
        part: label of the casks among those of several teachers, whose curve is taken from the training logs.
        control: of the last model, trained before anything is measured.
        suite: tasks to ask the models.
        counting: shows how far each model is.

    Raises:
        ReportError: no model was named, two share a label, a training log is missing, the casks were imported, or
            the output folder cannot be written.
        ContextError: a model cannot take the sequence length that was asked for.
        IdentityMismatchError: a model has its own tokenizer and no teacher was named, or another teacher's.
        NothingAlignedError: no document can be aligned with a model's own tokens.
        CaskError, ModelError: casks or models cannot be opened, or do not belong together.
        TaskError: the harness cannot score what a model answers.
    """
    _require_captured(casks)
    read = [(label, _read_log(folder, part)) for label, folder in config.train_logs]
    logs = [(label, lines) for label, lines in read if lines]
    with tempfile.TemporaryDirectory(prefix="logitcask-aligned-") as place:
        opened = OpenedModels() if control is None else OpenedModels(free=lambda: 0)  # training needs the room
        readers = Readers(config=config, casks=casks, folder=Path(place), say=say, counting=counting, opened=opened)
        readers.check()
        if control is not None:
            _require_readable(control, readers)
            readers.add_like(control.label, control.student, control.trained(say))
            config = control.beside_student(config)
        dataset = readers.dataset()
        warnings = _warnings(dataset, {label: readers.seen[label] for label, _ in config.models}, readers.tokens())
        for line in warnings:
            say(line)
        with counting("reading the teacher's records", dataset.num_positions, "positions") as done:
            teacher = evaluate_teacher(dataset, batch_sequences=readers.batch(dataset), progress=done)
        measured = readers.measure_all(config.models)
    document = build_document(
        dataset,
        teacher,
        _on_common_documents(measured),
        seed=config.seed,
        draft_lengths=config.draft_lengths,
    ) | {"warnings": warnings}
    if control is not None:
        document["control"] = _compared(control, teacher, measured, document["kinds"], config.seed)
    if readers.prompts:
        _add_texts(document, readers, measured, config)
    with explained_output(config.output):
        config.output.mkdir(parents=True, exist_ok=True)
        plots = draw(config.output, dataset, teacher, logs, document)
        if config.token_scores:
            _write_token_scores(config.output, measured, casks, document["kinds"], say)
    _write(document, plots, config.output)
    if suite is not None:
        add_tasks(document, suite, config, device(), say)
        with explained_output(config.output):
            plots["tasks.png"] = task_accuracies(config.output / "tasks.png", document)
        _write(document, plots, config.output)
    if config.speed:  # last: what was measured so far stays where a model does not fit a second time
        _add_costs(document, config, say)
        _write(document, plots, config.output)
    return document


def _write(document: dict[str, Any], plots: dict[str, str], output: Path) -> None:
    """The report in its three forms."""
    with explained_output(output):
        (output / "report.json").write_text(json.dumps(document, indent=2) + "\n")
        text = to_markdown(document, list(plots))
        (output / "report.md").write_text(text)
        (output / "report.html").write_text(to_page(text, plots))


def _compared(
    control: Control, teacher: Columns, measured: list[Measured], kinds: dict[str, str], seed: int
) -> dict[str, Any]:
    """What the teacher has brought, JSON."""
    columns = {model.label: model.columns for model in measured if model.columns is not None}
    closed = gap_closed(teacher, columns[control.label], columns[control.student], kinds, seed)
    return {"label": control.label, "student": control.student, "loss": control.run.loss, "closed": closed}


def _add_texts(document: dict[str, Any], readers: Readers, measured: list[Measured], config: ReportConfig) -> None:
    """What the models wrote, into the document: of each model, and of the recorded answers."""
    tokenizer = next(readers.tokenizers[label] for label in readers.readings)
    references = recorded_texts(tokenizer, readers.prompts)
    reference_scores = score_texts(references, None, seed=config.seed)
    document["generation"] = {"prompts": len(readers.prompts), "recorded": reference_scores}
    for described, model in zip(document["models"], measured, strict=True):
        if model.texts is not None:
            described["generation"] = score_texts(model.texts, references, seed=config.seed)


def _add_costs(document: dict[str, Any], config: ReportConfig, say: Callable[[str], None]) -> None:
    """What models and teacher cost, into the document."""
    teacher = config.teacher if config.teacher is not None and has_weights(config.teacher) else None
    if teacher is None:
        say("the teacher's speed is not measured: name a folder with its weights (--teacher)")
    folders = [*([("teacher", teacher)] if teacher is not None else []), *config.models]
    costs = []
    for number, (label, folder) in enumerate(folders, start=1):
        say(f"measuring the speed of {label}{which_of(number, len(folders))}")
        costs.append(cost_of(label, folder))
    document["cost"] = {"machine": machine(), "teacher": costs[0] if teacher is not None else None}
    for described, cost in zip(document["models"], costs[-len(config.models) :], strict=True):
        described["cost"] = cost


def _require_readable(control: Control, readers: Readers) -> None:
    if control.student not in readers.readings:
        raise ReportError(
            f"{control.student} has a tokenizer of its own: which share of a gap it closed per token cannot be told. "
            "Leave out --control"
        )


def _warnings(dataset: CaskDataset, seen: dict[str, dict[str, Any]], tokens: int | None) -> list[str]:
    """What a reader of the report must know before its figures."""
    warnings = warnings_of(seen, dataset.num_documents)
    if dataset.num_documents == 1:
        warnings.append("there is one document only, so no number has an interval: hold out more")
    if tokens is not None and (note := beyond_tokens_note(dataset, tokens)) is not None:
        warnings.append(note)
    return warnings


def _write_token_scores(
    output: Path, measured: list[Measured], casks: Sequence[Cask], kinds: dict[str, str], say: Callable[[str], None]
) -> None:
    for place, model in enumerate(measured, start=1):
        if model.columns is not None:  # one with a tokenizer of its own has no figures at the teacher's tokens
            path = output / token_scores_name(place)
            count = write_token_scores(path, model.columns, casks, kinds)
            say(f"KL of {model.label} at each position of {count} documents: {path}")


def _require_captured(casks: Sequence[Cask]) -> None:
    """Refuse casks whose records do not say what a report is about."""
    if (reason := why_unmeasurable(casks[0])) is not None:
        raise ReportError(f"{reason}, and report on that")


def _on_common_documents(measured: list[Measured]) -> list[Measured]:
    """Bits per byte of the documents that every model's tokenizer reproduces; others would favour who leaves them out.

    Raises:
        ReportError: there is no such document.
    """
    each = [model.chunks.documents_C for model in measured if model.chunks is not None]
    if not each:
        return measured
    common = reduce(np.intersect1d, each)
    if not len(common):
        raise ReportError("no document can be aligned with the tokens of every model: report on fewer models at a time")
    return [replace(model, chunks=model.chunks.of_documents(common)) if model.chunks else model for model in measured]


def _read_log(folder: Path, part: str | None) -> list[dict[str, Any]]:
    """Lines of a run's metrics; of one on several teachers those of a part under their plain names, perhaps none."""
    lines = read_metrics(folder / METRICS_NAME)
    if not lines:
        raise ReportError(
            f"{folder} holds no training log ({METRICS_NAME}); name the output folder of `logitcask train`"
        )
    if not any(name.startswith("positions/") for line in lines for name in line):
        return lines
    return [
        {name.removesuffix(f"/{part}"): value for name, value in line.items() if name.endswith(f"/{part}")}
        for line in lines
        if f"positions/{part}" in line
    ]
