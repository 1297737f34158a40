"""Scored sequences as JSON: lists per position, and the shape that TRL's trainers read."""

import json
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.record.records import DocumentRecords, Records

_FLOOR: Final = -9999.0
"""What vLLM gives for a probability of 0, as JSON has no infinity."""


def scores_of(document: DocumentRecords) -> dict[str, Any]:
    """One sequence as `SequenceScores`, of JSON values."""
    records, extent = document.records, document.extent
    scores: dict[str, Any] = {
        "first": 0 if extent.recorded_R2 is None else int(extent.recorded_R2[0, 0]),
        "head_ids": _cut(records.head_ids_H.tolist(), records.head_counts_P),
        "head_logprobs": _cut(_numbers(records.head_logprobs_H), records.head_counts_P),
        "next_logprobs": _numbers(next_logprobs(document)),
        "tail_mass": np.exp(records.log_tail_mass_P.astype(np.float64)).tolist(),
        "entropy": _numbers(records.entropy_P),
        "tail_ids": _cut(records.tail_ids_N.tolist(), records.tail_counts_P),
    }
    if records.tail_logprobs_N is not None:
        scores["tail_logprobs"] = _cut(_numbers(records.tail_logprobs_N), records.tail_counts_P)
    if records.log_z_PT is not None:
        scores["log_z"] = [_numbers(row) for row in records.log_z_PT]
    return scores


def next_logprobs(document: DocumentRecords) -> NDArray[np.float64]:
    """Log-probability of the token that comes after each recorded position, [P]; every head holds it."""
    records = document.records
    next_ids_P = document.token_ids_L[document.extent.positions(len(document.token_ids_L)) + 1]
    entries = np.flatnonzero(records.head_ids_H == np.repeat(next_ids_P, records.head_counts_P))
    rows = np.repeat(np.arange(records.num_positions), records.head_counts_P)[entries]
    _, first_of_row = np.unique(rows, return_index=True)
    logprobs_P: NDArray[np.float64] = records.head_logprobs_H[entries[first_of_row]].astype(np.float64)
    return logprobs_P


def prompt_logprobs_json(document: DocumentRecords, asked: int, temperature: float) -> str:
    """The `prompt_logprobs` of one choice as JSON text: null for the first token, then an object per token.

    Args:
        document: captured in mode `topk` with k >= `asked`, with log Z_T where the temperature is not 1.
        asked: the most probable tokens to show; the one that came next is always shown.
        temperature: T of the distribution t^(1/T) / Z_T that is shown.
    """
    records = document.records
    logprobs_H = _tempered(records, temperature)
    next_ids = document.token_ids_L[1:].tolist()
    rows: list[str] = ["null"]
    for next_id, ids, logprobs in zip(
        next_ids,
        _cut(records.head_ids_H.tolist(), records.head_counts_P),
        _cut(logprobs_H.tolist(), records.head_counts_P),
        strict=True,
    ):
        rows.append("{" + ",".join(_entries(next_id, ids, logprobs, asked)) + "}")
    return "[" + ",".join(rows) + "]"


def _entries(next_id: int, ids: list[int], logprobs: list[float], asked: int) -> Iterator[str]:
    shown = set[int]()
    for rank, (token, logprob) in enumerate(zip(ids, logprobs, strict=True), start=1):
        if token not in shown and (rank <= asked or token == next_id):
            shown.add(token)
            yield f'"{token}":{{"logprob":{logprob!r},"rank":{rank},"decoded_token":null}}'


def _tempered(records: Records, temperature: float) -> NDArray[np.float64]:
    logprobs_H = records.head_logprobs_H.astype(np.float64)
    if temperature != 1:
        assert records.log_z_PT is not None  # the spec asked for it
        log_z_P = records.log_z_PT[:, 0].astype(np.float64)
        logprobs_H = logprobs_H / temperature - np.repeat(log_z_P, records.head_counts_P)
    # Seven digits are what a float32 holds.
    tempered: NDArray[np.float64] = np.round(np.maximum(logprobs_H, _FLOOR), 7)
    return tempered


def _cut(values: list[Any], counts_P: NDArray[np.uint8]) -> list[list[Any]]:
    """Entries that lie end to end, position by position."""
    ends = np.cumsum(counts_P, dtype=np.int64).tolist()
    return [values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _numbers(values: NDArray[Any]) -> list[float | None]:
    """As JSON has them: null for minus infinity."""
    numbers: list[float] = values.astype(np.float64).tolist()
    if np.isfinite(values).all():
        return list(numbers)
    return [None if number == -np.inf else number for number in numbers]


def as_json(value: object) -> bytes:
    """Compact; every number is finite."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
