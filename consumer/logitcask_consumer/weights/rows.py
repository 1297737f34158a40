"""Some rows of ragged columns.

Shape legend: P or R rows, K of them taken, H head entries and N tail draws.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.losses.target import Offsets, SparseTarget
from logitcask_schemas.records import Records


def take_records(records: Records, keep_P: NDArray[np.bool_]) -> Records:
    """The records of some positions."""
    head_H = np.repeat(keep_P, records.head_counts_P)
    tail_N = np.repeat(keep_P, records.tail_counts_P)
    return Records(
        head_counts_P=records.head_counts_P[keep_P],
        head_ids_H=records.head_ids_H[head_H],
        head_logprobs_H=records.head_logprobs_H[head_H],
        tail_counts_P=records.tail_counts_P[keep_P],
        tail_ids_N=records.tail_ids_N[tail_N],
        log_tail_mass_P=records.log_tail_mass_P[keep_P],
        entropy_P=records.entropy_P[keep_P],
        tail_logprobs_N=_some(records.tail_logprobs_N, tail_N),
        log_z_PT=_some(records.log_z_PT, keep_P),
    )


def take_target(target: SparseTarget, rows_K: Tensor) -> SparseTarget:
    """The target of some rows, ascending; offsets live on the host, so a device is waited for once."""
    host_K = rows_K.cpu().numpy()
    device = rows_K.device
    head_offsets, head = _entries(target.head_offsets_R1, host_K)
    tail_offsets, tail = _entries(target.tail_offsets_R1, host_K)
    at_H, at_N = torch.from_numpy(head).to(device), torch.from_numpy(tail).to(device)
    return replace(
        target,
        head_ids_H=target.head_ids_H[at_H],
        head_weights_H=target.head_weights_H[at_H],
        head_rows_H=torch.from_numpy(np.repeat(np.arange(len(host_K)), np.diff(head_offsets))).to(device),
        head_offsets_R1=head_offsets,
        tail_ids_N=target.tail_ids_N[at_N],
        tail_weights_N=target.tail_weights_N[at_N],
        tail_rows_N=torch.from_numpy(np.repeat(np.arange(len(host_K)), np.diff(tail_offsets))).to(device),
        tail_offsets_R1=tail_offsets,
        tail_mass_R=target.tail_mass_R[rows_K],
        log_tail_mass_R=target.log_tail_mass_R[rows_K],
        next_ids_R=target.next_ids_R[rows_K],
        tail_logprobs_N=_some(target.tail_logprobs_N, at_N),
        entropy_R=_some(target.entropy_R, rows_K),
        log_z_R=_some(target.log_z_R, rows_K),
        documents_R=_some(target.documents_R, rows_K),
    )


def _entries(offsets_R1: Offsets, rows_K: NDArray[np.int64]) -> tuple[Offsets, NDArray[np.int64]]:
    """Offsets of the rows taken, and the indices of their entries."""
    counts_K = np.diff(offsets_R1)[rows_K]
    offsets_K1 = np.concatenate([[0], np.cumsum(counts_K)]).astype(np.int64)
    return offsets_K1, np.arange(int(offsets_K1[-1])) + np.repeat(offsets_R1[rows_K] - offsets_K1[:-1], counts_K)


def _some(column: Any, at: Any) -> Any:
    return None if column is None else column[at]
