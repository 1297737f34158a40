"""The pilot's own record: one capture at a threshold so low that the records at every tau in question follow from it.

At tau_0 = 1/800 the head holds every token with t >= tau_0, so the head at any larger tau is a part of it; the rest of
it joins the tail, whose mass is thus a sum, and whose draws can be drawn again from that rest and the pilot's draws
(two-phase sampling). Stored beside it is log Z at T = 1/2, which is log of the sum of t² over the whole vocabulary: the
one number that the variance of draws takes besides.

Shape legend: P positions, E head entries and N draws of the pilot, over all documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.capture_spec import MAX_ENTRIES, CaptureSpec
from logitcask_schemas.records import DocumentRecords

PILOT_TAU = 1 / 800
_DRAWS = 128
_SQUARES = 0.5
"""Temperature at which the sum of t^(1/T) is that of t²."""


def pilot_spec(spec: CaptureSpec) -> CaptureSpec:
    """What to capture for a pilot of `spec`: its columns and pinned ids, at the pilot's threshold, in float32."""
    temperatures = spec.temperatures if _SQUARES in spec.temperatures else (*spec.temperatures, _SQUARES)
    changes = {
        "mode": "threshold",
        "tau": PILOT_TAU,
        "head_max": MAX_ENTRIES - 1 - len(spec.pinned_ids),
        "tail_max": _DRAWS,
        "sampler": "systematic",
        "logprob_codec": "f32",
        "tail_logprobs": True,
        "temperatures": temperatures,
    }
    return CaptureSpec.model_validate(spec.model_dump() | changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotRecords:
    """The pilot's records as flat columns in float64."""

    documents: Sequence[DocumentRecords]
    head_rows_E: NDArray[np.int64]
    """Position of each head entry, over all documents."""
    head_ids_E: NDArray[np.int64]
    head_logprobs_E: NDArray[np.float64]
    head_ranks_E: NDArray[np.int64]
    """Place within the position: 0 for the most probable token."""
    required_E: NDArray[np.bool_]
    """Whether it is the next token or a pinned id, which every head holds."""
    tail_rows_N: NDArray[np.int64]
    tail_ids_N: NDArray[np.int64]
    tail_logprobs_N: NDArray[np.float64]
    draw_mass_N: NDArray[np.float64]
    """What each draw stands for."""
    tail_mass_P: NDArray[np.float64]
    tail_squares_P: NDArray[np.float64]
    """Sum of t² over the tail."""
    squares_P: NDArray[np.float64]
    """Sum of t² over the vocabulary."""

    @property
    def positions(self) -> int:
        """P."""
        return len(self.tail_mass_P)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return self.positions + len(self.documents)

    @classmethod
    def of(cls, documents: Sequence[DocumentRecords], spec: CaptureSpec) -> "PilotRecords":
        """Of documents captured with `pilot_spec(spec)`."""
        temperature = pilot_spec(spec).temperatures.index(_SQUARES)
        parts = [document.records for document in documents]
        head_counts_P = np.concatenate([part.head_counts_P for part in parts]).astype(np.int64)
        tail_counts_P = np.concatenate([part.tail_counts_P for part in parts]).astype(np.int64)
        rows_P = np.arange(len(head_counts_P))
        head_rows_E, tail_rows_N = np.repeat(rows_P, head_counts_P), np.repeat(rows_P, tail_counts_P)
        head_ids_E = np.concatenate([part.head_ids_H for part in parts]).astype(np.int64)
        head_logprobs_E = np.concatenate([part.head_logprobs_H for part in parts]).astype(np.float64)
        tail_mass_P = np.exp(np.concatenate([part.log_tail_mass_P for part in parts]).astype(np.float64))
        squares_P = np.exp(np.concatenate([_log_z(document)[:, temperature] for document in documents]))
        next_ids_P = np.concatenate([document.token_ids_L[1:] for document in documents]).astype(np.int64)
        head_squares_P = np.bincount(head_rows_E, np.exp(2 * head_logprobs_E), len(rows_P))
        return cls(
            documents=documents,
            head_rows_E=head_rows_E,
            head_ids_E=head_ids_E,
            head_logprobs_E=head_logprobs_E,
            head_ranks_E=np.arange(len(head_rows_E)) - (np.cumsum(head_counts_P) - head_counts_P)[head_rows_E],
            required_E=(head_ids_E == next_ids_P[head_rows_E]) | np.isin(head_ids_E, np.array(spec.pinned_ids)),
            tail_rows_N=tail_rows_N,
            tail_ids_N=np.concatenate([part.tail_ids_N for part in parts]).astype(np.int64),
            tail_logprobs_N=np.concatenate([_tail_logprobs(document) for document in documents]),
            draw_mass_N=(tail_mass_P / np.maximum(tail_counts_P, 1))[tail_rows_N],
            tail_mass_P=tail_mass_P,
            # A difference, but of numbers that the teacher's float32 logits know to seven digits.
            tail_squares_P=np.maximum(squares_P - head_squares_P, 0.0),
            squares_P=squares_P,
        )


def _log_z(document: DocumentRecords) -> NDArray[np.float64]:
    assert document.records.log_z_PT is not None  # the pilot's spec asks for it
    return document.records.log_z_PT.astype(np.float64)


def _tail_logprobs(document: DocumentRecords) -> NDArray[np.float64]:
    assert document.records.tail_logprobs_N is not None  # the pilot's spec asks for it
    return document.records.tail_logprobs_N.astype(np.float64)
