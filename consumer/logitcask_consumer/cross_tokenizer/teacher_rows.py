"""What chunk losses need of the teacher's records, position by position.

Shape legend: P positions, H head entries, N tail draws, Q chosen positions, K most likely tokens, V teacher's ids.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.errors import DocumentMismatchError
from logitcask_schemas.records import Records

_CODEC_ERROR: Final = {"f32": 2.0**-22, "f16": 2.0**-10, "u8": 0.05}
"""Relative error of a stored log-probability, rounded up."""


def next_logprobs(records: Records, next_ids_P: NDArray[Any]) -> NDArray[np.float64]:
    """Log t of the realised next token of each position, [P].

    Raises:
        DocumentMismatchError: a head does not hold it, so records and tokens are shifted.
    """
    counts_P = records.head_counts_P.astype(np.int64)
    found_E = np.flatnonzero(records.head_ids_H == np.repeat(next_ids_P, counts_P))
    row_H = np.repeat(np.arange(len(counts_P)), counts_P)
    logprobs_P = np.full(len(counts_P), np.nan)
    logprobs_P[row_H[found_E]] = records.head_logprobs_H[found_E]
    if np.isnan(logprobs_P).any():
        at = int(np.flatnonzero(np.isnan(logprobs_P))[0])
        raise DocumentMismatchError(
            f"the record of a position does not hold its next token {int(next_ids_P[at])}. Records and tokens do not "
            "belong together (shifted, or another tokenizer): run `logitcask cask verify`."
        )
    return logprobs_P


def mass_of(records: Records, tokens_V: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Estimate the teacher's mass on a set of tokens, [P]: exact on the head, r / n per draw on the tail.

    Unbiased where the tail was drawn; a lower bound where it was not (mode `topk`).
    """
    positions = records.num_positions
    head_P = _sums(
        records.head_counts_P, np.exp(records.head_logprobs_H.astype(np.float64)) * tokens_V[records.head_ids_H]
    )
    draws_P = _sums(records.tail_counts_P, tokens_V[records.tail_ids_N].astype(np.float64))
    share_P = np.exp(records.log_tail_mass_P.astype(np.float64)) / np.maximum(records.tail_counts_P, 1)
    assert len(head_P) == len(draws_P) == positions
    return np.minimum(head_P + share_P * draws_P, 1.0)


def certain_top(
    records: Records, positions_Q: NDArray[np.int64], capture: CaptureSpec
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest probabilities that a record holds without a gap, [Q, K] in descending order, and how many they are.

    A head also holds the next token and pinned ids, whatever their size; what was chosen by size comes before them.
    """
    counts_P = records.head_counts_P.astype(np.int64)
    starts_P = np.cumsum(counts_P) - counts_P
    counts_Q = np.minimum(counts_P[positions_Q], capture.k if capture.mode == "topk" else capture.head_max)
    column_K = np.arange(int(counts_Q.max(initial=0)))
    held_QK = column_K < counts_Q[:, None]
    at_QK = np.where(held_QK, starts_P[positions_Q][:, None] + column_K, 0)
    logprobs_QK = np.where(held_QK, records.head_logprobs_H[at_QK].astype(np.float64), -np.inf)
    if capture.mode == "threshold":
        # Strictly above the threshold, whatever the rounding; and the most likely token, which is always first.
        least = np.log(capture.tau) * (1.0 - _CODEC_ERROR[capture.logprob_codec])
        logprobs_QK[(logprobs_QK < least) & (column_K > 0)] = -np.inf
    probs_QK = -np.sort(-np.exp(logprobs_QK), axis=1)
    return probs_QK.astype(np.float32), np.count_nonzero(logprobs_QK > -np.inf, axis=1)


def _sums(counts_P: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the values of each position, whose counts may be 0."""
    row_of = np.repeat(np.arange(len(counts_P)), counts_P)
    return np.bincount(row_of, weights=values, minlength=len(counts_P)).astype(np.float64)
