"""Making a report on the casks of one teacher: measure, estimate, write."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcask_consumer.cross_tokenizer import AlignedDocuments
from logitcask_consumer.data import CaskDataset
from logitcask_consumer.data.vocabulary import beyond_tokens_note, token_count
from logitcask_consumer.report import plots
from logitcask_consumer.report.document import Measured, build_document
from logitcask_consumer.report.estimates import DocumentBootstrap, Estimate
from logitcask_consumer.report.evaluate import Columns, evaluate_model, evaluate_teacher
from logitcask_consumer.report.held_out import trained_on, warnings_of
from logitcask_consumer.report.markdown import to_markdown
from logitcask_consumer.report.reading import LONGEST, Reading, extra_ids_of, reading_of
from logitcask_consumer.report.token_scores import token_scores_name, write_token_scores
from logitcask_consumer.run_document import METRICS_NAME
from logitcask_consumer.student.checks import context_of
from logitcask_consumer.student.students import load_model, load_tokenizer
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError, LogitcaskError
from logitcask_schemas.model_source import find_model
from logitcask_schemas.record.identity import tokenizer_fingerprint

PLOTTED_POSITIONS = 200_000
"""The curve of captured mass is drawn from at most this many positions."""
_BUCKETS = 6


class ReportError(LogitcaskError, ValueError):
    """A report cannot be made of what was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What to report on."""

    casks: tuple[Path, ...]
    """Held-out casks."""
    models: tuple[tuple[str, Path], ...]
    """Label and folder of each model, or repository of the Hub, in the order in which they are shown."""
    train_logs: tuple[tuple[str, Path], ...] = ()
    """Label and output folder of training runs, for the loss curve."""
    output: Path
    """Folder for report.md, report.json and the plots."""
    seq_len: int | None = None
    """Tokens of a window; None takes, for each model, the longest document, at most `LONGEST` and what it can take."""
    batch_tokens: int = 4096
    """Slots per forward pass."""
    seed: int = 0
    """Of the bootstrap."""
    teacher: Path | None = None
    """The teacher's folder, of which the tokenizer is read: for models with a tokenizer of their own, and bits per byte
    of all."""
    token_scores: bool = False
    """Whether to write each model's KL at each position, for `logitcask view`; see `report.token_scores`."""
    other_teachers: tuple[Path, ...] = ()
    """Folders of further teachers, for casks with their tokenizers."""


def report_on(
    config: ReportConfig,
    casks: Sequence[Cask],
    say: Callable[[str], None] = lambda message: None,
    *,
    part: str | None = None,
) -> dict[str, Any]:
    """Measure the models on casks of one teacher and write the report; returns its document.

    Args:
        config: the report.
        casks: opened, all of one teacher and capture spec.
        say: receives messages for people.
        part: label of the casks among those of several teachers, whose curve is taken from the training logs.

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
    models = {label: load_model(folder) for label, folder in config.models}
    # Whatever can be refused is refused before anything is measured.
    readings = {
        label: reading_of(label, model, casks, config.seq_len, tokens=token_count(tokenizers[label]))
        for label, model in models.items()
        if label not in foreign
    }
    datasets = {reading: reading.dataset(casks) for reading in readings.values()}
    plain = Reading(seq_len=config.seq_len or LONGEST, packing="best_fit")  # where no model reads token by token
    dataset = next(iter(datasets.values()), None) or plain.dataset(casks)
    seen = {label: trained_on(folder, casks) for label, folder in config.models}
    warnings = warnings_of(seen, dataset.num_documents)
    if (tokens := _tokens(dataset, tokenizers, foreign)) is not None and (
        note := beyond_tokens_note(dataset, tokens)
    ) is not None:
        warnings.append(note)
    for line in warnings:
        say(line)
    with tempfile.TemporaryDirectory(prefix="logitcask-aligned-") as place:
        aligned = {
            label: _aligned(config, casks, label, models[label], Path(place) / fingerprints[label], say)
            for label in (models if config.teacher is not None else ())
        }
        teacher, measured = evaluate_teacher(dataset, batch_sequences=_batch(config, dataset)), []
        for label, folder in config.models:
            model = models.pop(label).to(_device())
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
    document = build_document(dataset, teacher, _on_common_documents(measured), seed=config.seed) | {
        "warnings": warnings
    }
    with explained_output(config.output):
        config.output.mkdir(parents=True, exist_ok=True)
        names = _draw(config.output, dataset, teacher, measured, logs, document)
        if config.token_scores:
            _write_token_scores(config.output, measured, casks, document["kinds"], say)
        (config.output / "report.json").write_text(json.dumps(document, indent=2) + "\n")
        (config.output / "report.md").write_text(to_markdown(document, names))
    return document


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


def with_folders(config: ReportConfig) -> ReportConfig:
    """Repositories of the Hub as the folders they are downloaded to. Raises ModelError."""
    teacher = config.teacher and find_model(config.teacher).folder
    others = tuple(find_model(other).folder for other in config.other_teachers)
    models = tuple((label, find_model(folder).folder) for label, folder in config.models)
    return replace(config, teacher=teacher, other_teachers=others, models=models)


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


def _draw(
    output: Path,
    dataset: CaskDataset,
    teacher: Columns,
    measured: list[Measured],
    logs: Sequence[tuple[str, list[dict[str, Any]]]],
    document: dict[str, Any],
) -> list[str]:
    """Write the plots; returns their names in the order in which the report shows them."""
    names = []
    kl = "kl" if "kl" in document["kinds"] else "kl_bound"
    if logs:
        named = [model for model in document["models"] if "kl" in model["metrics"]]
        held_out = {model["label"]: model["metrics"]["kl"]["value"] for model in named}
        plots.loss_curve(output / "loss_curve.png", logs, held_out)
        names.append("loss_curve.png")
    plots.captured_mass(output / "captured_mass.png", _cumulative_mass(dataset), teacher.values["entries"])
    by_model = {model.label: _by_entropy(teacher, model.columns, kl) for model in measured if model.columns is not None}
    plots.entropy(output / "entropy.png", teacher.values["entropy"], by_model)
    return [*names, "captured_mass.png", "entropy.png"]


def _by_entropy(teacher: Columns, model: Columns, metric: str) -> list[tuple[float, Estimate]]:
    """Mean entropy and KL of buckets of positions, equally many in each."""
    entropy_P, points = teacher.values["entropy"], []
    for chosen in np.array_split(np.argsort(entropy_P, kind="stable"), _BUCKETS):
        if len(chosen):
            bootstrap = DocumentBootstrap(model.documents_P[chosen])
            points.append((float(entropy_P[chosen].mean()), bootstrap.mean(model.values[metric][chosen])))
    return points


def _cumulative_mass(dataset: CaskDataset) -> NDArray[np.float32]:
    """Exact mass of the k largest head entries of each position, [P, K], of the first documents."""
    cask, parts, left = dataset.casks[0], [], PLOTTED_POSITIONS
    for index in range(len(cask)):
        records = cask.read(index).records
        counts = records.head_counts_P.astype(np.int64)
        rows = np.repeat(np.arange(len(counts)), counts)
        columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        mass = np.zeros((len(counts), int(counts.max(initial=1))), dtype=np.float32)
        mass[rows, columns] = np.exp(records.head_logprobs_H.astype(np.float32))
        parts.append(np.cumsum(-np.sort(-mass, axis=1), axis=1))
        left -= len(counts)
        if left <= 0:
            break
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), mode="edge") for part in parts])


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


def require_writable(output: Path) -> None:
    """Refuse a folder that cannot be made or written before anything is measured for nothing; makes nothing.

    Raises:
        ReportError: it cannot.
    """
    standing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    with explained_output(output), tempfile.TemporaryFile(dir=standing):
        pass


@contextmanager
def explained_output(output: Path) -> Iterator[None]:
    """Turn what the file system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        reason = f"{output} is a file" if output.is_file() else error.strerror
        raise ReportError(
            f"the folder {output} of the report cannot be made or written: {reason}. Free space, or name another "
            "folder (--output)"
        ) from error


def check_config(config: ReportConfig) -> None:
    """Refuse what can be refused before anything is opened. Raises ReportError."""
    if config.seed < 0:
        raise ReportError(f"seed must be at least 0, got {config.seed}")
    labels = [label for label, _ in config.models]
    if not labels:
        raise ReportError("no model to report on; name at least one as label=folder")
    if len(set(labels)) != len(labels):
        raise ReportError(f"labels must differ, got {', '.join(labels)}")
