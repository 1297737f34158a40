"""Making a report on the casks of one teacher: measure, estimate, write."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitcask_consumer.cross_tokenizer import AlignedDocuments
from logitcask_consumer.data import CaskDataset
from logitcask_consumer.data.vocabulary import beyond_tokens_note, token_count
from logitcask_consumer.report.config import ReportConfig, ReportError, explained_output
from logitcask_consumer.report.control import Control, gap_closed
from logitcask_consumer.report.document import Measured, build_document
from logitcask_consumer.report.drawing import draw
from logitcask_consumer.report.evaluate import evaluate_model, evaluate_teacher
from logitcask_consumer.report.held_out import trained_on, warnings_of
from logitcask_consumer.report.markdown import to_markdown
from logitcask_consumer.report.page import to_page
from logitcask_consumer.report.reading import LONGEST, Reading, extra_ids_of, load_reader, reading_of
from logitcask_consumer.report.token_scores import token_scores_name, write_token_scores
from logitcask_consumer.run_document import METRICS_NAME
from logitcask_consumer.student.checks import context_of
from logitcask_consumer.student.students import load_model, load_tokenizer
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.identity import tokenizer_fingerprint


def report_on(
    config: ReportConfig,
    casks: Sequence[Cask],
    say: Callable[[str], None] = lambda message: None,
    *,
    part: str | None = None,
    control: Control | None = None,
) -> dict[str, Any]:
    """Measure the models on casks of one teacher and write the report; returns its document.

    Args:
        config: the report.
        casks: opened, all of one teacher and capture spec.
        say: receives messages for people.
        part: label of the casks among those of several teachers, whose curve is taken from the training logs.
        control: of the last model, trained before anything is measured.

    Raises:
        ReportError: no model was named, two share a label, a training log is missing, the casks were imported, or
            the output folder cannot be written.
        ContextError: a model cannot take the sequence length that was asked for.
        IdentityMismatchError: a model has its own tokenizer and no teacher was named, or another teacher's.
        NothingAlignedError: no document can be aligned with a model's own tokens.
        CaskError, ModelError: casks or models cannot be opened, or do not belong together.
    """
    _require_captured(casks)
    read = [(label, _read_log(folder, part)) for label, folder in config.train_logs]
    logs = [(label, lines) for label, lines in read if lines]
    tokenizers = {label: load_tokenizer(folder) for label, folder in config.models}
    fingerprints = {label: tokenizer_fingerprint(tokenizer) for label, tokenizer in tokenizers.items()}
    foreign = foreign_models(config, casks[0], fingerprints)
    seen = {label: trained_on(folder, casks) for label, folder in config.models}
    with tempfile.TemporaryDirectory(prefix="logitcask-aligned-") as place:
        readings, aligned = dict[str, Reading](), dict[str, AlignedDocuments]()
        # Whatever can be refused is refused before anything is measured. One model is held at a time: of checkpoints
        # there may be any number.
        for label, folder in config.models:
            model = load_model(folder)
            if label not in foreign:
                tokens = token_count(tokenizers[label])
                readings[label] = reading_of(label, model, casks, config.seq_len, tokens=tokens)
            if config.teacher is not None:
                aligned[label] = _aligned(config, casks, label, model, Path(place) / fingerprints[label], say)
            del model
        if control is not None:
            _require_readable(control, readings)
            folder = control.trained(say)
            config = control.beside_student(config)
            seen[control.label] = trained_on(folder, casks)
            for same in (readings, aligned):  # the same model with other weights
                if control.student in same:
                    same[control.label] = same[control.student]
        datasets = {reading: reading.dataset(casks) for reading in readings.values()}
        plain = Reading(seq_len=config.seq_len or LONGEST, packing="best_fit")  # where no model reads token by token
        dataset = next(iter(datasets.values()), None) or plain.dataset(casks)
        warnings = _warnings(dataset, seen, _tokens(dataset, tokenizers, foreign))
        for line in warnings:
            say(line)
        teacher, measured = evaluate_teacher(dataset, batch_sequences=_batch(config, dataset)), []
        for label, folder in config.models:
            model = load_reader(folder, readings[label].packing if label in readings else "none").to(_device())
            columns = chunks = reading = None
            if label in readings:
                own = datasets[readings[label]]
                extra_ids = extra_ids_of(folder)
                reading = readings[label].describe(own) | {"extra_ids": extra_ids}
                say(f"measuring {label} at {own.num_positions:,} positions")
                columns = evaluate_model(model, own, batch_sequences=_batch(config, own), extra_ids=extra_ids)
            if label in aligned:
                say(f"measuring {label} on bytes")
                chunks = aligned[label].measure(model, batch_tokens=config.batch_tokens)
            measured.append(
                Measured(label=label, path=folder, columns=columns, chunks=chunks, reading=reading, seen=seen[label])
            )
            del model
    document = build_document(
        dataset,
        teacher,
        _on_common_documents(measured),
        seed=config.seed,
        draft_lengths=config.draft_lengths,
    ) | {"warnings": warnings}
    if control is not None:
        by_label = {model.label: model.columns for model in measured}
        own, students = by_label[control.label], by_label[control.student]
        assert own is not None
        assert students is not None
        document["control"] = {
            "label": control.label,
            "student": control.student,
            "loss": control.run.loss,
            "closed": gap_closed(teacher, own, students, document["kinds"], config.seed),
        }
    with explained_output(config.output):
        config.output.mkdir(parents=True, exist_ok=True)
        plots = draw(config.output, dataset, teacher, logs, document)
        if config.token_scores:
            _write_token_scores(config.output, measured, casks, document["kinds"], say)
        (config.output / "report.json").write_text(json.dumps(document, indent=2) + "\n")
        text = to_markdown(document, list(plots))
        (config.output / "report.md").write_text(text)
        (config.output / "report.html").write_text(to_page(text, plots))
    return document


def _require_readable(control: Control, readings: Mapping[str, Reading]) -> None:
    if control.student not in readings:
        raise ReportError(
            f"{control.student} has a tokenizer of its own: which share of a gap it closed per token cannot be told. "
            "Leave out --control"
        )


def _warnings(dataset: CaskDataset, seen: dict[str, dict[str, Any]], tokens: int | None) -> list[str]:
    """What a reader of the report must know before its figures."""
    warnings = warnings_of(seen, dataset.num_documents)
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
    if casks[0].manifest.capture.imported:
        raise ReportError(
            f"{casks[0].place} was imported from another tool's top-k: it lacks the teacher's entropy, and its "
            "probability of tokens beyond the k largest, so the teacher's loss and the KL cannot be told. Capture "
            "held-out text with logitcask (submit --held-out), and report on that"
        )
    if casks[0].manifest.capture.entropy_is_bound:
        raise ReportError(
            f"{casks[0].place} holds the top-k of a teacher that was served elsewhere: of its entropy a lower bound is "
            "known, so the teacher's loss and the KL cannot be told. Capture held-out text with an engine that sees "
            "the whole distribution (serve --engine vllm; submit --held-out), and report on that"
        )


def foreign_models(config: ReportConfig, cask: Cask, fingerprints: Mapping[str, str]) -> set[str]:
    """Labels of the models with another tokenizer than a cask's teacher.

    Raises:
        IdentityMismatchError: there are some, and the report has no teacher with this tokenizer.
    """
    expected = cask.manifest.teacher.tokenizer_fingerprint
    foreign = {label for label, fingerprint in fingerprints.items() if fingerprint != expected}
    if foreign and config.teacher is None:
        raise IdentityMismatchError(
            f"the tokenizer of {', '.join(sorted(foreign))} is not that of {cask.place} (fingerprint {expected}): ids "
            "mean other tokens there. To compare bits per byte, name the folder of its teacher with --teacher (only "
            "the tokenizer is read)"
        )
    return foreign


def _tokens(dataset: CaskDataset, tokenizers: dict[str, Any], foreign: set[str]) -> int | None:
    """One more than the largest id of the casks' tokenizer; None where neither cask nor a model tells it."""
    of_models = (token_count(tokenizer) for label, tokenizer in tokenizers.items() if label not in foreign)
    return next(of_models, dataset.manifest.teacher.tokenizer_size)


def _batch(config: ReportConfig, dataset: CaskDataset) -> int:
    """Sequences per forward pass."""
    return max(1, config.batch_tokens // dataset.seq_len)


def _aligned(
    config: ReportConfig,
    casks: Sequence[Cask],
    label: str,
    model: Any,
    folder: Path,
    say: Callable[[str], None],
) -> AlignedDocuments:
    """The documents in a model's tokens; models with one tokenizer share the folder."""
    assert config.teacher is not None
    seq_len = config.seq_len or min(
        LONGEST, context_of(model.config) or LONGEST
    )  # its tokens may be more than the teacher's
    return AlignedDocuments.of(
        model,
        load_tokenizer(dict(config.models)[label]),
        casks,
        teacher=config.teacher,
        folder=folder,
        seq_len=seq_len,
        overlap=seq_len // 2,
        say=lambda message: say(f"{label}: {message}"),
    )


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


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")


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
