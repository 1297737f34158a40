"""The report as one document: every number once, with its unit, its interval and what kind of estimate it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from logitcask_consumer.cross_tokenizer import ChunkColumns
from logitcask_consumer.data import CaskDataset
from logitcask_consumer.report.buckets import by_bucket, entropy_buckets, frequency_buckets
from logitcask_consumer.report.config import DRAFT_LENGTH
from logitcask_consumer.report.estimates import LEVEL, DocumentBootstrap, Estimate, speculative
from logitcask_consumer.report.evaluate import Columns, metric_kinds
from logitcask_consumer.report.texts import WrittenText

FORMAT = {"format": "logitcask-report", "version": 1}
SHOWN = (
    "kl",
    "kl_bound",
    "nll",
    "perplexity",
    "entropy",
    "agreement",
    "top5_agreement",
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
    "top5_agreement": "share of positions",
    "acceptance": "share of drafted tokens",
    "greedy_acceptance": "share of drafted tokens",
    "tvd": "probability",
    "tail_error": "probability",
    "accuracy": "share of positions",
    "calibration_error": "probability",
}
BRACKETED = ("acceptance", "greedy_acceptance", "top5_agreement")
"""What records may tell between two ends only: columns of these names with `_low` and `_high`."""


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
    texts: list[WrittenText] | None = None
    """What it wrote after prompts, where the report is asked for that."""


def build_document(
    dataset: CaskDataset,
    teacher: Columns,
    models: list[Measured],
    *,
    seed: int = 0,
    draft_lengths: Sequence[int] = (DRAFT_LENGTH,),
) -> dict[str, Any]:
    """Put together the whole report as a JSON document.

    Args:
        dataset: the held-out documents.
        teacher: the teacher's own figures.
        models: the students, in the order in which they are shown; every two with the teacher's tokenizer are compared.
            `change` is the comparison of the last of these with the first.
        seed: of the bootstrap.
        draft_lengths: drafted tokens of a speculative step.
    """
    bootstrap = DocumentBootstrap(teacher.documents_P, seed=seed)
    models = [replace(model, columns=model.columns and _with_exact(model.columns)) for model in models]
    comparable = {model.label: model.columns for model in models if model.columns is not None}
    kinds = _kinds(dataset, list(comparable.values()))
    document: dict[str, Any] = {
        **FORMAT,
        "cask": _cask(dataset, teacher),
        "confidence_level": LEVEL,
        "resampled_by": "document",
        "kinds": {name: kinds[name] for name in SHOWN if name in kinds},
        "units": {name: UNITS[name] for name in SHOWN if name in kinds},
        "teacher": {name: value.as_dict() for name, value in _teacher(teacher, bootstrap, kinds).items()},
        "models": [_described(model, bootstrap, kinds, seed, draft_lengths) for model in models],
        "buckets": _buckets(teacher, comparable, kinds, seed),
    }
    if changes := [
        _change(before, comparable[before], after, comparable[after], bootstrap, kinds)
        for before, after in combinations(comparable, 2)
    ]:
        document |= {"change": changes[len(comparable) - 2], "pairs": changes}
    aligned = {model.label: model.chunks for model in models if model.chunks is not None}
    if bytes_changes := [
        _bytes_change(before, aligned[before], after, aligned[after], seed)
        for before, after in combinations(aligned, 2)
    ]:
        document |= {"bytes_change": bytes_changes[len(aligned) - 2], "bytes_pairs": bytes_changes}
    return document


def _described(
    model: Measured, bootstrap: DocumentBootstrap, kinds: dict[str, str], seed: int, draft_lengths: Sequence[int]
) -> dict[str, Any]:
    """One model's part of the document."""
    estimates = _model(model.columns, bootstrap, kinds)
    brackets = _brackets(model.columns, bootstrap, kinds)
    described: dict[str, Any] = {
        "label": model.label,
        "path": str(model.path),
        "metrics": {name: value.as_dict() for name, value in estimates.items()},
    }
    if model.columns is not None:
        known = {
            name: estimate for name, estimate in estimates.items() if name not in brackets or kinds[name] == "unbiased"
        }
        described |= {"brackets": brackets, "speculative": speculative(known, brackets, draft_lengths)}
    if "acceptance" in brackets:
        described["acceptance_bracket"] = brackets["acceptance"]
    optional = {
        "reading": model.reading,
        "trained_on": model.seen,
        "bytes": model.chunks and _bytes(model.chunks, seed),
    }
    return described | {name: value for name, value in optional.items() if value is not None}


def _buckets(teacher: Columns, models: dict[str, Columns], kinds: dict[str, str], seed: int) -> dict[str, Any]:
    """The KL, or its bound, by what the teacher and the text are like where it arises."""
    metric = "kl" if "kl" in kinds else "kl_bound"
    ways = {
        "entropy": entropy_buckets(teacher.values["entropy"]),
        "frequency": frequency_buckets(teacher.values["occurrences"]),
    }
    by_way = {name: by_bucket(buckets, teacher, models, metric, seed=seed) for name, buckets in ways.items()}
    return {"metric": metric, **by_way}


def _kinds(dataset: CaskDataset, models: Sequence[Columns]) -> dict[str, str]:
    """What each metric is; one that is known between two ends is exact where these are the same for every model."""
    capture = dataset.manifest.capture
    kinds: dict[str, str] = dict(
        metric_kinds(
            sampled_tail=capture.mode != "topk",
            tail_logprobs=capture.tail_logprobs and capture.mode != "topk",
            ordered_head=capture.mode != "sampled",
        )
    )
    if models and "agreement" in kinds and all("top5_agreement" in columns.values for columns in models):
        kinds["top5_agreement"] = "exact"
    return kinds | {"perplexity": "exact", "accuracy": "exact", "calibration_error": "exact"}


def _with_exact(columns: Columns) -> Columns:
    """With the figures that are known between two ends which are the same at every position."""
    exact = {name: columns.values[f"{name}_low"] for name in BRACKETED if _is_exact(columns, name)}
    return replace(columns, values=exact | columns.values)


def _is_exact(columns: Columns, name: str) -> bool:
    return np.array_equal(columns.values[f"{name}_low"], columns.values[f"{name}_high"])


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


def _brackets(
    columns: Columns | None, bootstrap: DocumentBootstrap, kinds: dict[str, str]
) -> dict[str, dict[str, float]]:
    """Between which ends the figures lie that records give no estimate of, or one that is noisy or itself a bound.

    From the lower end of the lower bound's interval to the upper end of the upper bound's. Left out where there is an
    exact figure, and where records say nothing at all.
    """
    if columns is None:
        return {}
    brackets = {}
    for name in BRACKETED:
        nothing_known = name == "top5_agreement" and "agreement" not in kinds
        if nothing_known or (name in kinds and (name == "acceptance" or _is_exact(columns, name))):
            continue
        low, high = (bootstrap.mean(columns.values[f"{name}_{end}"]) for end in ("low", "high"))
        brackets[name] = {
            "low": max(0.0, low.value if low.low is None else low.low),
            "high": min(1.0, high.value if high.high is None else high.high),
        }
    return brackets


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
