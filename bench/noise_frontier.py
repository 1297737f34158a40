"""Gradient noise against bytes per token, on real records of three kinds of text: the frontier of schemes.

The gradient of the KL for a position's logits is g = p - t; a record gives p - t̂ in its place. Two errors are taken,
as shares of the squared norm of the dense gradient:

* `per position`: mean of |ĝ - g|². For an unbiased record this is noise, whatever the student; for a ghost bucket or a
  renormalised top-k it is bias, which depends on the student.
* `per batch`: |Ĝ - G|² of the LM head's gradient summed over all positions of the text. Noise averages out there, bias
  does not.

The student is the cross-entropy student that `training_table.py` leaves in bench/cache (so run that first).

Schemes: `threshold` (tau), `sampled` with the systematic and the multinomial sampler (draws), `random sampling` as it
was published (draws over the whole vocabulary, counts / N, 3 bytes per distinct token: arXiv 2503.16870), `ghost` and
`renormalised` top-k. Bytes: `all` counts every stored column (token ids, counts, tail mass and entropy too; for random
sampling token id and count), `entries` the head and the draws alone.

The claim: at equal noise per position, at most 0.6 of the bytes of random sampling; `ratio` rows show it, with random
sampling's bytes interpolated between its points.

Shape legend: R positions of a document, V vocabulary, D hidden size of the student, E entries of a sparse t̂.
"""

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

import teacher_rows
from cask_bytes import captured
from logitcask_consumer.head import base_model
from logitcask_schemas.record.capture_spec import CaptureSpec
from noise_frontier_plot import draw
from report import Report

LENGTH = 513
TAUS = (5, 10, 20, 35, 50, 100, 200)
DRAWS = (12, 25, 50, 100, 200)
SIZES = (12, 25, 50, 100, 200)
COLUMNS_BYTES = 2 + 1 + 1 + 2 + 2
"""Token id, two counts, tail mass, entropy."""


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """t̂ of a document's positions: weights at flat indices of [R, V], plus a share of the student outside the head."""

    at_E: Tensor
    weights_E: Tensor
    all_bytes: float
    entry_bytes: float
    student_share_R: Tensor | None = None
    """r / s for a ghost bucket: t̂ outside the entries is this times p."""


@dataclass
class Sums:
    """Over the documents of a kind of text."""

    error: float = 0.0
    bytes: dict[str, float] = field(default_factory=lambda: {"all": 0.0, "entries": 0.0})
    target_VD: Tensor | None = None
    """Sum of t̂ h^T."""


def squared(target_VD: Tensor | None, teacher_VD: Tensor) -> float:
    """Squared distance; there was a document."""
    assert target_VD is not None
    return float(((target_VD - teacher_VD) ** 2).sum())


def joined(at_E: Tensor, weights_E: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of equal indices added up."""
    at: Any = at_E
    unique_E, inverse_E = at.unique(return_inverse=True)
    return unique_E, torch.zeros(len(unique_E)).index_add_(0, inverse_E, weights_E)


def record(logits_RV: Tensor, ids: Any, spec: CaptureSpec, p_RV: Tensor) -> Sparse:
    """t̂ as the trainer makes it from a record, by the mode's own estimator (a ghost bucket in mode topk)."""
    document = captured(logits_RV, ids, spec)
    records, width = document.records, logits_RV.shape[1]
    rows = np.arange(len(records.head_counts_P))
    head_rows = torch.from_numpy(np.repeat(rows, records.head_counts_P))
    tail_rows = torch.from_numpy(np.repeat(rows, records.tail_counts_P))
    mass_R = torch.from_numpy(np.exp(records.log_tail_mass_P.astype(np.float32)))
    counts_R = torch.from_numpy(records.tail_counts_P.astype(np.float32))
    if spec.mode != "topk":
        mass_R = torch.where(counts_R > 0, mass_R, torch.zeros_like(mass_R))
    head_E = torch.from_numpy(np.exp(records.head_logprobs_H.astype(np.float32)))
    stored_R = torch.zeros_like(mass_R).index_add_(0, head_rows, head_E)
    head_E = head_E * ((1 - mass_R) / stored_R)[head_rows]
    head_at = head_rows * width + torch.from_numpy(records.head_ids_H.astype(np.int64))
    tail_at = tail_rows * width + torch.from_numpy(records.tail_ids_N.astype(np.int64))
    at_E, weights_E = joined(
        torch.cat([head_at, tail_at]), torch.cat([head_E, (mass_R / counts_R.clamp(min=1))[tail_rows]])
    )
    share_R = None
    if spec.mode == "topk":
        share_R = mass_R / (1 - torch.zeros_like(mass_R).index_add_(0, head_rows, p_RV.view(-1)[head_at])).clamp(
            min=1e-6
        )
    entry_bytes = (4 * len(head_rows) + 2 * len(tail_rows)) / len(rows)
    return Sparse(
        at_E=at_E,
        weights_E=weights_E,
        all_bytes=COLUMNS_BYTES + entry_bytes,
        entry_bytes=entry_bytes,
        student_share_R=share_R,
    )


def random_sampling(t_RV: Tensor, draws: int, generator: torch.Generator) -> Sparse:
    """Counts / N of N independent draws over the whole vocabulary; 3 bytes per distinct token."""
    drawn_Rn = torch.multinomial(t_RV, draws, replacement=True, generator=generator)
    at = drawn_Rn + torch.arange(len(t_RV))[:, None] * t_RV.shape[1]
    at_E, weights_E = joined(at.flatten(), torch.full((at.numel(),), 1 / draws))
    size = 3 * len(at_E) / len(t_RV)
    return Sparse(at_E=at_E, weights_E=weights_E, all_bytes=size + 3, entry_bytes=size)


def renormalised(t_RV: Tensor, k: int) -> Sparse:
    """The k largest, scaled to add up to one."""
    top = t_RV.topk(k)
    at_E = (top.indices + torch.arange(len(t_RV))[:, None] * t_RV.shape[1]).flatten()
    weights_E = (top.values / top.values.sum(-1, keepdim=True)).flatten()
    return Sparse(at_E=at_E, weights_E=weights_E, all_bytes=4 * k + 4, entry_bytes=4 * k)


def schemes(
    logits_RV: Tensor, ids: Any, t_RV: Tensor, p_RV: Tensor, generator: torch.Generator
) -> dict[tuple[str, int], Sparse]:
    found: dict[tuple[str, int], Sparse] = {}
    for tau in TAUS:
        spec = CaptureSpec(tau=1 / tau, head_max=128, tail_max=255)
        found["threshold", tau] = record(logits_RV, ids, spec, p_RV)
    for draws in DRAWS:
        for sampler in ("systematic", "multinomial"):
            spec = CaptureSpec(mode="sampled", draws=draws, sampler=sampler)
            found[f"sampled, {sampler}", draws] = record(logits_RV, ids, spec, p_RV)
        found["random sampling", draws] = random_sampling(t_RV, draws, generator)
    for k in SIZES:
        found["ghost top-k", k] = record(logits_RV, ids, CaptureSpec(mode="topk", k=k), p_RV)
        found["renormalised top-k", k] = renormalised(t_RV, k)
    return found


def add(sums: Sums, sparse: Sparse, t_RV: Tensor, p_RV: Tensor, hidden_RD: Tensor) -> None:
    """Add a document to a scheme's sums."""
    width = t_RV.shape[1]
    rows_E = sparse.at_E // width
    t_E, weights_E = t_RV.view(-1)[sparse.at_E], sparse.weights_E
    outside = float((t_RV * t_RV).sum() - (t_E * t_E).sum())
    if sums.target_VD is None:
        sums.target_VD = torch.zeros(width, hidden_RD.shape[1])
    if (share_R := sparse.student_share_R) is not None:
        p_E = p_RV.view(-1)[sparse.at_E]
        squares_R = (p_RV * p_RV).sum(-1).index_add_(0, rows_E, -(p_E * p_E))
        products_R = (p_RV * t_RV).sum(-1).index_add_(0, rows_E, -(p_E * t_E))
        outside += float((share_R * share_R * squares_R - 2 * share_R * products_R).sum())
        sums.target_VD.addmm_(p_RV.T, hidden_RD * share_R[:, None])
        weights_E = weights_E - share_R[rows_E] * p_E
    sums.target_VD.index_add_(0, sparse.at_E % width, weights_E[:, None] * hidden_RD[rows_E])
    sums.error += float(((sparse.weights_E - t_E) ** 2).sum()) + outside
    sums.bytes["all"] += sparse.all_bytes * len(t_RV)
    sums.bytes["entries"] += sparse.entry_bytes * len(t_RV)


@torch.inference_mode()
def measure(rows: teacher_rows.TeacherRows, student: Any) -> dict[tuple[str, int], dict[str, float]]:
    """Figures of every scheme on one kind of text."""
    found: dict[tuple[str, int], Sums] = defaultdict(Sums)
    generator = torch.Generator().manual_seed(0)
    head_VD = student.get_output_embeddings().weight
    gradient = teacher = 0.0
    teacher_VD, student_VD = torch.zeros_like(head_VD), torch.zeros_like(head_VD)
    positions = 0
    for number, ids in enumerate(rows.ids_DL):
        hidden_RD = base_model(student)(
            input_ids=torch.from_numpy(ids[None, :-1].astype(np.int64)), use_cache=False
        ).last_hidden_state[0]
        logits_RV = rows.logits(number)
        t_RV, p_RV = logits_RV.softmax(-1), (hidden_RD @ head_VD.T).softmax(-1)
        gradient += float(((p_RV - t_RV) ** 2).sum())
        teacher_VD.addmm_(t_RV.T, hidden_RD)
        student_VD.addmm_(p_RV.T, hidden_RD)
        for name, sparse in schemes(logits_RV, ids, t_RV, p_RV, generator).items():
            add(found[name], sparse, t_RV, p_RV, hidden_RD)
        positions += len(t_RV)
        print(f"{number + 1} of {len(rows.ids_DL)} documents", flush=True)
    teacher = float(((student_VD - teacher_VD) ** 2).sum())
    return {
        name: {
            "bytes, all": sums.bytes["all"] / positions,
            "bytes, entries": sums.bytes["entries"] / positions,
            "error per position": sums.error / gradient,
            "error per batch": squared(sums.target_VD, teacher_VD) / teacher,
            "squared error of target": sums.error / positions,
        }
        for name, sums in found.items()
    }


def against_random_sampling(figures: dict[tuple[str, int], dict[str, float]], tau: int, which: str) -> float:
    """Bytes of the threshold record over those of random sampling at the same error per position."""
    points = [point for (scheme, _), point in figures.items() if scheme == "random sampling"]
    ours = figures["threshold", tau]
    errors = np.log([point["error per position"] for point in points])
    sizes = np.log([point[f"bytes, {which}"] for point in points])
    wanted = np.log(ours["error per position"])
    if not errors.min() <= wanted <= errors.max():
        return float("nan")  # outside the points measured: nothing to interpolate
    other = float(np.exp(np.interp(wanted, errors[::-1], sizes[::-1])))
    return ours[f"bytes, {which}"] / other


def kept_figures(path: Path) -> dict[str, dict[tuple[str, int], dict[str, float]]]:
    """The figures of an earlier run, from its CSV file."""
    found: dict[str, dict[tuple[str, int], dict[str, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            scheme = (row["scheme"], int(row["parameter"]))
            found.setdefault(row["text"], {}).setdefault(scheme, {})[row["metric"]] = float(row["p50"])
    return found


def main() -> None:
    from demo.fetch_teacher import fetch_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder of the teacher (default: SmolLM2-135M, fetched)")
    parser.add_argument("--student", type=Path, default=Path("bench/cache/student-ce"))
    parser.add_argument("--cache", type=Path, default=Path("bench/cache"), help="where hidden states are kept")
    parser.add_argument("--documents", type=int, default=8, help=f"of {LENGTH - 1} positions, of each kind")
    parser.add_argument("--plot-only", action="store_true", help="draw the figures of an earlier run")
    arguments = parser.parse_args()
    report = Report(__file__, "torch", "transformers")
    if arguments.plot_only:
        draw(kept_figures(report.path))
        return
    teacher = arguments.teacher or fetch_model("smollm2-135m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    student: Any = transformers.AutoModelForCausalLM.from_pretrained(arguments.student, dtype=torch.float32)
    student.eval()
    note = f"{arguments.documents * (LENGTH - 1):,} positions"
    found = {}
    for kind, texts in teacher_rows.KINDS.items():
        ids_DL = teacher_rows.documents(tokenizer, texts(), count=arguments.documents, length=LENGTH)
        found[kind] = measure(teacher_rows.teacher_rows(teacher, ids_DL, arguments.cache), student)
        for (scheme, size), figures in found[kind].items():
            for metric, value in figures.items():
                unit = "bytes/token" if metric.startswith("bytes") else ""
                report.add(metric, unit, [value], note, text=kind, scheme=scheme, parameter=size)
        for tau in TAUS:
            for which in ("all", "entries"):
                ratio = against_random_sampling(found[kind], tau, which)
                labels = {"text": kind, "scheme": "threshold", "parameter": tau}
                if not np.isnan(ratio):
                    report.add(
                        f"ratio: bytes ({which}) / random sampling at equal error", "ratio", [ratio], note, **labels
                    )
    report.write()
    draw(found)


if __name__ == "__main__":
    main()
