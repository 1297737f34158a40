"""A pilot over a function that gives logits, in torch: records as capture makes them, and gradients of a student.

Shape legend: L tokens of a document, P = L - 1 positions, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import document_id
from logitcask_schemas.record.records import DocumentRecords
from logitcask_schemas.record.wire import decode_wire
from logitcask_services.capture.record_capture import RecordCapture
from logitcask_services.capture.record_columns import pack_wire
from logitcask_services.pilot.pilot import PilotError

LogitsFunction: TypeAlias = Callable[[NDArray[np.uint32]], torch.Tensor]
"""Token ids [L] to logits [L - 1, V] of the tokens from the second on, on any device."""


def records_from_logits(
    logits_of: LogitsFunction, documents: Iterable[NDArray[np.uint32]], spec: CaptureSpec
) -> tuple[list[DocumentRecords], int]:
    """Records of documents, and the width of the logits; 0 where there is no document.

    Raises:
        PilotError: the logits have another shape.
    """
    capture: RecordCapture | None = None
    captured = []
    for ids_L in documents:
        logits_PV = checked_logits(logits_of, ids_L)
        if capture is None:
            capture = RecordCapture(spec, logits_PV.shape[1])
        positions_P = torch.arange(len(logits_PV), device=logits_PV.device)
        key = int.from_bytes(document_id(ids_L)[:8], "little", signed=True)
        next_ids_P = torch.from_numpy(ids_L[1:].astype(np.int64)).to(logits_PV.device)
        # A copy, as capture works in place and the logits are the caller's.
        columns = capture(logits_PV.clone(), next_ids_P, torch.full_like(positions_P, key), positions_P)
        records = decode_wire(pack_wire(columns, capture.vocab_size).cpu().numpy(), capture.spec)
        captured.append(DocumentRecords(token_ids_L=ids_L, records=records))
    return captured, 0 if capture is None else capture.vocab_size


@torch.inference_mode()
def checked_logits(logits_of: LogitsFunction, ids_L: NDArray[np.uint32]) -> torch.Tensor:
    """Logits [P, V] of a document. Raises PilotError where they have another shape."""
    logits_PV = logits_of(ids_L)
    if logits_PV.ndim != 2 or len(logits_PV) != len(ids_L) - 1:
        raise PilotError(
            f"logits of a document of {len(ids_L)} tokens should have shape [{len(ids_L) - 1}, V], one row per token "
            f"from the second on, got {list(logits_PV.shape)}"
        )
    return logits_PV


@torch.inference_mode()
def gradient_squares(
    student: LogitsFunction, documents: Sequence[DocumentRecords], squares_P: NDArray[np.float64]
) -> float:
    """Mean over positions of |p - t|², the squared norm of a student's gradient with respect to its logits.

    |p - t|² = sum p² - 2 sum p t + sum t²; of these only the middle one is estimated, from the pilot's head and draws.

    Raises:
        PilotError: the student's logits have another shape, or its vocabulary is too small.
    """
    total, start = 0.0, 0
    for document in documents:
        logits_PV = checked_logits(student, np.asarray(document.token_ids_L, dtype=np.uint32))
        p_PV = logits_PV.to(torch.float32).softmax(-1)
        products = _products(p_PV, document)
        stop = start + len(p_PV)
        total += float(p_PV.square().sum(dtype=torch.float64)) - 2 * products + float(squares_P[start:stop].sum())
        start = stop
    return total / start


def _products(p_PV: torch.Tensor, document: DocumentRecords) -> float:
    """Sum over positions and vocabulary of p t, from the sparse target."""
    records = document.records
    rows_P = np.arange(len(p_PV))
    weights_P = np.exp(records.log_tail_mass_P.astype(np.float64)) / np.maximum(records.tail_counts_P, 1)
    parts = (
        (records.head_counts_P, records.head_ids_H, np.exp(records.head_logprobs_H.astype(np.float64))),
        (records.tail_counts_P, records.tail_ids_N, np.repeat(weights_P, records.tail_counts_P)),
    )
    total = 0.0
    largest = max(int(ids.max(initial=0)) for _, ids, _ in parts)
    if largest >= p_PV.shape[1]:
        raise PilotError(
            f"the teacher's records hold token id {largest}, the student has logits for {p_PV.shape[1]}; "
            "take a student with the teacher's vocabulary"
        )
    for counts_P, ids, weights in parts:
        rows = torch.from_numpy(np.repeat(rows_P, counts_P)).to(p_PV.device)
        p = p_PV[rows, torch.from_numpy(ids.astype(np.int64)).to(p_PV.device)]
        total += float(p.to(torch.float64).cpu().numpy() @ weights)
    return total
