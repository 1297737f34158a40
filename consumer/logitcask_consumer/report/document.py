"""The report as one document: every number once, with its unit, its interval and what kind of estimate it is."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from logitcask_consumer.cross_tokenizer import ChunkColumns
from logitcask_consumer.data import CaskDataset
from logitcask_consumer.report.estimates import LEVEL, DocumentBootstrap, Estimate
from logitcask_consumer.report.evaluate import Columns, metric_kinds

FORMAT = {"format": "logitcask-report", "version": 1}
SHOWN = (
    "kl",
    "kl_bound",
    "nll",
    "perplexity",
    "entropy",
    "agreement",
    "acceptance",
    "greedy_acceptance",
    "tvd",
    "tail_error",
    "accuracy",
    "calibration_error",
)
UNITS = {
    "kl": "nats per token",
    "kl_bound": "nats per token",
    "nll": "nats per token",
    "perplexity": "",
    "entropy": "nats per token",
    "agreement": "share of positions",
    "acceptance": "share of drafted tokens",
    "greedy_acceptance": "share of drafted tokens",
    "tvd": "probability",
    "tail_error": "probability",
    "accuracy": "share of positions",
    "calibration_error": "probability",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model of the report."""

    label: str
    path: Path
    columns: Columns | None
    """None of a model with a tokenizer of its own."""
    chunks: ChunkColumns | None = None
    """None where the report is not asked for bits per byte."""
    reading: dict[str, Any] | None = None
    """How it read the documents, see `Reading.describe`; None of a model with a tokenizer of its own."""
    seen: dict[str, Any] | None = None
    """What is known of its training documents, see `trained_on`."""


def build_document(dataset: CaskDataset, teacher: Columns, models: list[Measured], *, seed: int = 0) -> dict[str, Any]:
    """Put together the whole report as a JSON document.

    Args:
        dataset: the held-out documents.
        teacher: the teacher's own figures.
        models: the students, in the order in which they are shown; the last with the teacher's tokenizer is compared
            with the first.
        seed: of the bootstrap.
    """
    bootstrap = DocumentBootstrap(teacher.documents_P, seed=seed)
    kinds = _kinds(dataset)
    document: dict[str, Any] = {
        **FORMAT,
        "cask": _cask(dataset, teacher),
        "confidence_level": LEVEL,
        "resampled_by": "document",
        "kinds": {name: kinds[name] for name in SHOWN if name in kinds},
        "units": {name: UNITS[name] for name in SHOWN if name in kinds},
        "teacher": {name: value.as_dict() for name, value in _teacher(teacher, bootstrap, kinds).items()},
        "models": [
            {
                "label": model.label,
                "path": str(model.path),
                "metrics": {name: value.as_dict() for name, value in _model(model.columns, bootstrap, kinds).items()},
                **_bracket(model.columns, bootstrap, kinds),
                **({} if model.reading is None else {"reading": model.reading}),
                **({} if model.seen is None else {"trained_on": model.seen}),
                **({} if model.chunks is None else {"bytes": _bytes(model.chunks, seed)}),
            }
            for model in models
        ],
    }
    comparable = [(model.label, model.columns) for model in models if model.columns is not None]
    if len(comparable) > 1:
        document["change"] = _change(*comparable[0], *comparable[-1], bootstrap, kinds)
    aligned = [(model.label, model.chunks) for model in models if model.chunks is not None]
    if len(aligned) > 1:
        document["bytes_change"] = _bytes_change(*aligned[0], *aligned[-1], seed)
    return document


def _kinds(dataset: CaskDataset) -> dict[str, str]:
    capture = dataset.manifest.capture
    kinds: dict[str, str] = dict(
        metric_kinds(
            sampled_tail=capture.mode != "topk",
            tail_logprobs=capture.tail_logprobs and capture.mode != "topk",
            ordered_head=capture.mode != "sampled",
        )
    )
    return kinds | {"perplexity": "exact", "accuracy": "exact", "calibration_error": "exact"}


def _cask(dataset: CaskDataset, teacher: Columns) -> dict[str, Any]:
    casks = dataset.casks
    tokens, size = sum(cask.num_tokens for cask in casks), sum(cask.num_bytes for cask in casks)
    captured, entries = teacher.values["captured"], teacher.values["entries"]
    return {
        "teacher": dataset.manifest.teacher.model_dump(mode="json"),
        "capture": dataset.manifest.capture.canonical(),
        "documents": dataset.num_documents,
        "documents_with_positions": len(np.unique(teacher.documents_P)),
        "positions": len(teacher.documents_P),
        "tokens": tokens,
        "bytes": size,
        "bytes_per_token": size / tokens,
        "entries_per_position": float(entries.mean(dtype=np.float64)),
        "captured_mass": {
            "mean": float(captured.mean(dtype=np.float64)),
            **{f"p{q}": float(np.quantile(captured, q / 100)) for q in (5, 50, 95)},
        },
        "teacher_entropy": float(teacher.values["entropy"].mean(dtype=np.float64)),
    }


def _teacher(columns: Columns, bootstrap: DocumentBootstrap, kinds: dict[str, str]) -> dict[str, Estimate]:
    values = columns.values
    nll = bootstrap.mean(values["nll"])
    own = {"nll": nll, "perplexity": nll.map(np.exp), "entropy": bootstrap.mean(values["entropy"])}
    if "agreement" in kinds:  # the head is in order, so its first entry is the teacher's most likely token
        own["accuracy"] = bootstrap.mean(values["correct"])
        own["greedy_acceptance"] = bootstrap.mean(values["confidence"])
        own["calibration_error"] = bootstrap.calibration_error(values["confidence"], values["correct"])
    return own


def _model(columns: Columns | None, bootstrap: DocumentBootstrap, kinds: dict[str, str]) -> dict[str, Estimate]:
    if columns is None:
        return {}
    values = columns.values
    estimates = {name: bootstrap.mean(values[name]) for name in SHOWN if name in kinds and name in values}
    estimates["perplexity"] = estimates["nll"].map(np.exp)
    estimates["accuracy"] = bootstrap.mean(values["correct"])
    estimates["calibration_error"] = bootstrap.calibration_error(values["confidence"], values["correct"])
    return {name: estimates[name] for name in SHOWN if name in estimates}


def _bracket(columns: Columns | None, bootstrap: DocumentBootstrap, kinds: dict[str, str]) -> dict[str, Any]:
    """Where the expected acceptance lies, for records that give no estimate of it.

    From the lower end of the lower bound's interval to the upper end of the upper bound's.
    """
    if columns is None or "acceptance" in kinds:
        return {}
    low, high = (bootstrap.mean(columns.values[f"acceptance_{end}"]) for end in ("low", "high"))
    return {
        "acceptance_bracket": {
            "low": low.value if low.low is None else low.low,
            "high": high.value if high.high is None else high.high,
        }
    }


def _bytes(chunks: ChunkColumns, seed: int) -> dict[str, Any]:
    """Bits per byte of model and teacher on the bytes that both predict; the difference is paired by document."""
    bootstrap, bits_C = DocumentBootstrap(chunks.documents_C, seed=seed), chunks.bytes_C * math.log(2.0)
    student_C, teacher_C = chunks.student_nats_C, chunks.teacher_nats_C
    return {
        "bits_per_byte": bootstrap.ratio(student_C, bits_C).as_dict(),
        "teacher_bits_per_byte": bootstrap.ratio(teacher_C, bits_C).as_dict(),
        "difference": bootstrap.ratio(student_C - teacher_C, bits_C).as_dict(),
        "documents": bootstrap.num_documents,
        "chunks": len(chunks.bytes_C),
        "bytes": int(chunks.bytes_C.sum()),
    }


def _bytes_change(before: str, first: ChunkColumns, after: str, last: ChunkColumns, seed: int) -> dict[str, Any]:
    """Difference of the last model's bits per byte to the first's, paired by document."""
    (of_first, first_C), (of_last, last_C) = (
        (DocumentBootstrap(chunks.documents_C, seed=seed), chunks.bytes_C * math.log(2.0)) for chunks in (first, last)
    )
    change = of_last.ratio_change(last.student_nats_C, last_C, of_first, first.student_nats_C, first_C)
    return {"from": before, "to": after, "bits_per_byte": change.as_dict()}


def _change(
    before: str, first: Columns, after: str, last: Columns, bootstrap: DocumentBootstrap, kinds: dict[str, str]
) -> dict[str, Any]:
    """Difference of the last model to the first, paired by position."""
    named = [name for name in SHOWN if name in kinds and name in first.values]
    differences = {name: bootstrap.difference(last.values[name], first.values[name]) for name in named}
    return {
        "from": before,
        "to": after,
        "metrics": {name: difference.as_dict() for name, difference in differences.items()},
    }
