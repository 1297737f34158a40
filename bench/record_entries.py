"""Head entries and draws per position by tau and by the teacher's entropy, beside what `logitcask plan` expects.

Counted on the teacher's dense rows by the rules of the record (docs/capture.md): a head of all tokens with t >= tau,
the most probable one and the next token; ceil(r / tau) draws from the rest. Three kinds of text have three entropies;
the plan knows nothing of a text but that number.

Shape legend: R positions of a document, V vocabulary.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

import teacher_rows
from logitcask_schemas.planning.entries import expected_entries
from report import Report

LENGTH = 513
TAUS = (10, 20, 35, 50, 100, 200)
NEGLIGIBLE = 1e-6
"""Tail mass from which nothing is drawn."""


def rows_of(rows: teacher_rows.TeacherRows) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Probabilities [R, V] and next tokens [R] of each document."""
    for number, ids_L in enumerate(rows.ids_DL):
        yield torch.softmax(rows.logits(number).double(), -1).numpy(), ids_L[1:].astype(np.int64)


def counted(rows: teacher_rows.TeacherRows) -> tuple[float, dict[int, tuple[float, float]]]:
    """Mean entropy in nats, and per 1/tau the mean head entries and draws."""
    entropies = list[NDArray[np.float64]]()
    heads: dict[int, list[NDArray[np.float64]]] = {tau: [] for tau in TAUS}
    draws: dict[int, list[NDArray[np.float64]]] = {tau: [] for tau in TAUS}
    for t_RV, next_R in rows_of(rows):
        entropies.append(-(t_RV * np.log(np.maximum(t_RV, 1e-300))).sum(1))
        at_R = np.arange(len(t_RV))
        for inverse in TAUS:
            head_RV = t_RV >= 1 / inverse
            head_RV[at_R, t_RV.argmax(1)] = True
            head_RV[at_R, next_R] = True
            tail_R = np.where(head_RV, 0.0, t_RV).sum(1)
            heads[inverse].append(head_RV.sum(1).astype(np.float64))
            draws[inverse].append(np.where(tail_R < NEGLIGIBLE, 0.0, np.ceil(tail_R * inverse)))
    means = {inverse: (float(np.mean(heads[inverse])), float(np.mean(draws[inverse]))) for inverse in TAUS}
    return float(np.mean(np.concatenate(entropies))), means


@torch.inference_mode()
def main() -> None:
    from demo.fetch_teacher import fetch_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder of the teacher (default: SmolLM2-135M, fetched)")
    parser.add_argument("--cache", type=Path, default=Path("bench/cache"), help="where hidden states are kept")
    parser.add_argument("--documents", type=int, default=8, help=f"of {LENGTH - 1} positions, of each kind")
    arguments = parser.parse_args()
    report = Report(__file__, "torch", "transformers")
    teacher = arguments.teacher or fetch_model("smollm2-135m")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(teacher)
    note = f"{arguments.documents * (LENGTH - 1):,} positions of {teacher.name}"
    for kind, texts in teacher_rows.KINDS.items():
        ids_DL = teacher_rows.documents(tokenizer, texts(), count=arguments.documents, length=LENGTH)
        entropy, means = counted(teacher_rows.teacher_rows(teacher, ids_DL, arguments.cache))
        report.add("entropy", "nats", [entropy], note, text=kind, inverse_tau="")
        for inverse, (head, draws) in means.items():
            expected = expected_entries(1 / inverse, entropy)
            labels = {"text": kind, "inverse_tau": inverse}
            report.add("head entries", "per position", [head], note, **labels)
            report.add("head entries, expected", "per position", [expected.head], note, **labels)
            report.add("tail draws", "per position", [draws], note, **labels)
            report.add("tail draws, expected", "per position", [expected.draws], note, **labels)
    report.write()


if __name__ == "__main__":
    main()
