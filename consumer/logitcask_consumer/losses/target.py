"""The teacher's sparse target t̂ for a batch of positions, as ragged (CSR) torch columns.

Shape legend: R rows (positions), H head entries and N tail draws over all rows, V vocabulary size.

Ragged columns were chosen over a padded [R, K] table by measurement: with 13 entries per row on average and 90 at
most, gathering and scattering cost 0.07 and 0.09 microseconds per row against 0.43 and 0.49 padded (CPU, V = 49,152),
and the columns take a seventh of the memory.
"""

from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_schemas.errors import InvalidRecordError

Offsets: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseTarget:
    """t̂ over R rows: exact on the head, r / n per draw on the tail. Probabilities, not logarithms.

    Offsets live on the host so that cutting rows into blocks never waits for the device.
    """

    head_ids_H: Tensor
    """int64 token ids of the heads, row after row."""
    head_weights_H: Tensor
    """t_j of the head entries, rescaled so that head plus tail mass is 1 in every row."""
    head_rows_H: Tensor
    """int64 row of each head entry."""
    head_offsets_R1: Offsets
    """R + 1 offsets into the head columns."""
    tail_ids_N: Tensor
    """int64 token ids of the draws; may repeat within a row."""
    tail_weights_N: Tensor
    """r / n of the draw's row."""
    tail_rows_N: Tensor
    """int64 row of each draw."""
    tail_offsets_R1: Offsets
    """R + 1 offsets into the tail columns."""
    tail_mass_R: Tensor
    """r, the teacher's mass outside the head; 0 where a sampled tail has no draws."""
    log_tail_mass_R: Tensor
    """log r as it is stored, also where there are no draws; -inf where the head holds everything."""
    next_ids_R: Tensor
    """int64 realised next token y of each row."""
    tail_logprobs_N: Tensor | None = None
    """log t of the draws, where the records hold it."""
    entropy_R: Tensor | None = None
    """H(t) of the whole distribution."""
    log_z_R: Tensor | None = None
    """log sum_V t^(1/T) for the temperature T that the target was made for."""
    documents_R: Tensor | None = None
    """A number per row, equal within a document and different between documents."""
    policy_R4: Tensor | None = None
    """[R, 4] of texts that a student, or the teacher in its place, sampled: log q of the token, the weighted sum of the
    rewards log t(y) - log q(y) of the later tokens, how many these are, and the weight of what stands before the token;
    see `losses.formulas.policy_rkl` and `data.sampled_dataset.policy_values`."""

    @property
    def num_rows(self) -> int:
        """Number of rows, R."""
        return len(self.head_offsets_R1) - 1

    @classmethod
    def from_columns(
        cls,
        *,
        head_ids_H: Tensor,
        head_logprobs_H: Tensor,
        head_offsets_R1: Offsets,
        tail_ids_N: Tensor,
        tail_offsets_R1: Offsets,
        log_tail_mass_R: Tensor,
        next_ids_R: Tensor,
        sampled_tail: bool,
        tail_logprobs_N: Tensor | None = None,
        entropy_R: Tensor | None = None,
        log_z_R: Tensor | None = None,
        documents_R: Tensor | None = None,
        policy_R4: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Build the target from stored columns, restoring exact mass after the codec's rounding.

        Args:
            head_ids_H: token ids, any integer dtype.
            head_logprobs_H: log t_j in nats, float16 or wider.
            head_offsets_R1: R + 1 offsets of the rows in the head columns, on the host.
            tail_ids_N: drawn token ids.
            tail_offsets_R1: R + 1 offsets of the rows in the tail columns, on the host.
            log_tail_mass_R: log r in nats.
            next_ids_R: realised next tokens.
            sampled_tail: True in modes `threshold` and `sampled`, where a row without draws means r = 0; False in mode
                `topk`, where r is kept for a ghost bucket.
            tail_logprobs_N: log t of the draws, in nats.
            entropy_R: H(t) of the whole distribution, in nats.
            log_z_R: log sum t^(1/T) for a temperature T.
            documents_R: a number per row, equal within a document.
            policy_R4: of texts that a student sampled, see `policy_R4`.
            dtype: of the weights; float32, or float64 in tests.

        Raises:
            InvalidRecordError: offsets and columns disagree in length, or a row's head is empty.
        """
        device = head_ids_H.device
        _check_lengths(head_offsets_R1, head_ids_H, head_logprobs_H, tail_offsets_R1, tail_ids_N, log_tail_mass_R)
        head_rows_H, _ = _rows(head_offsets_R1, device)
        tail_rows_N, tail_counts_R = _rows(tail_offsets_R1, device)
        log_tail_mass_R = log_tail_mass_R.to(dtype)
        tail_mass_R, head_mass_R = log_tail_mass_R.exp(), -torch.expm1(log_tail_mass_R)
        if sampled_tail:
            undrawn_R = tail_counts_R == 0
            tail_mass_R = tail_mass_R.masked_fill(undrawn_R, 0.0)
            head_mass_R = head_mass_R.masked_fill(undrawn_R, 1.0)
        head_weights_H = head_logprobs_H.to(dtype).exp()
        stored_mass_R = torch.zeros_like(tail_mass_R).index_add_(0, head_rows_H, head_weights_H)
        # A head whose every probability underflows has nothing to rescale: its mass is the rounding of log r, then.
        scale_R = torch.where(stored_mass_R > 0, head_mass_R / stored_mass_R, torch.zeros_like(stored_mass_R))
        per_draw_R = tail_mass_R / tail_counts_R.clamp(min=1)
        return cls(
            head_ids_H=head_ids_H.to(torch.int64),
            head_weights_H=head_weights_H * scale_R[head_rows_H],
            head_rows_H=head_rows_H,
            head_offsets_R1=head_offsets_R1,
            tail_ids_N=tail_ids_N.to(torch.int64),
            tail_weights_N=per_draw_R[tail_rows_N],
            tail_rows_N=tail_rows_N,
            tail_offsets_R1=tail_offsets_R1,
            tail_mass_R=tail_mass_R,
            log_tail_mass_R=log_tail_mass_R,
            next_ids_R=next_ids_R.to(torch.int64),
            tail_logprobs_N=None if tail_logprobs_N is None else tail_logprobs_N.to(dtype),
            entropy_R=None if entropy_R is None else entropy_R.to(dtype),
            log_z_R=None if log_z_R is None else log_z_R.to(dtype),
            documents_R=documents_R,
            policy_R4=None if policy_R4 is None else policy_R4.to(dtype),
        )

    def rows(self, start: int, stop: int) -> Self:
        """Rows start..stop-1 as a target of their own; columns are views."""
        head = slice(int(self.head_offsets_R1[start]), int(self.head_offsets_R1[stop]))
        tail = slice(int(self.tail_offsets_R1[start]), int(self.tail_offsets_R1[stop]))
        return type(self)(
            head_ids_H=self.head_ids_H[head],
            head_weights_H=self.head_weights_H[head],
            head_rows_H=self.head_rows_H[head] - start,
            head_offsets_R1=self.head_offsets_R1[start : stop + 1] - head.start,
            tail_ids_N=self.tail_ids_N[tail],
            tail_weights_N=self.tail_weights_N[tail],
            tail_rows_N=self.tail_rows_N[tail] - start,
            tail_offsets_R1=self.tail_offsets_R1[start : stop + 1] - tail.start,
            tail_mass_R=self.tail_mass_R[start:stop],
            log_tail_mass_R=self.log_tail_mass_R[start:stop],
            next_ids_R=self.next_ids_R[start:stop],
            tail_logprobs_N=None if self.tail_logprobs_N is None else self.tail_logprobs_N[tail],
            entropy_R=None if self.entropy_R is None else self.entropy_R[start:stop],
            log_z_R=None if self.log_z_R is None else self.log_z_R[start:stop],
            documents_R=None if self.documents_R is None else self.documents_R[start:stop],
            policy_R4=None if self.policy_R4 is None else self.policy_R4[start:stop],
        )

    def to_dtype(self, dtype: torch.dtype) -> Self:
        """The same target with weights and masses of another dtype; ids and offsets are shared."""
        if self.head_weights_H.dtype == dtype:
            return self
        return replace(
            self,
            head_weights_H=self.head_weights_H.to(dtype),
            tail_weights_N=self.tail_weights_N.to(dtype),
            tail_mass_R=self.tail_mass_R.to(dtype),
            log_tail_mass_R=self.log_tail_mass_R.to(dtype),
            tail_logprobs_N=None if self.tail_logprobs_N is None else self.tail_logprobs_N.to(dtype),
            entropy_R=None if self.entropy_R is None else self.entropy_R.to(dtype),
            log_z_R=None if self.log_z_R is None else self.log_z_R.to(dtype),
            policy_R4=None if self.policy_R4 is None else self.policy_R4.to(dtype),
        )

    @property
    def head_logprobs_H(self) -> Tensor:
        """Log t_j of the head entries, of the restored weights; at least the logarithm of the smallest number."""
        return self.head_weights_H.clamp(min=torch.finfo(self.head_weights_H.dtype).tiny).log()

    def covers(self, vocab_size: int) -> bool:
        """Whether some row's head holds the whole vocabulary."""
        return self.num_rows > 0 and int(np.diff(self.head_offsets_R1).max()) >= vocab_size

    def head_sum(self, values_H: Tensor) -> Tensor:
        """Sum per row of a value per head entry, [R]."""
        return torch.zeros_like(self.tail_mass_R).index_add_(0, self.head_rows_H, values_H)

    def tail_sum(self, values_N: Tensor) -> Tensor:
        """Sum per row of a value per tail draw, [R]."""
        return torch.zeros_like(self.tail_mass_R).index_add_(0, self.tail_rows_N, values_N)


def _rows(offsets_R1: Offsets, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row of each entry, and entries of each row, from offsets."""
    counts_R = torch.from_numpy(np.diff(offsets_R1)).to(device, non_blocking=True)
    rows_R = torch.arange(len(counts_R), device=device)
    # The known output size spares the device a wait.
    return torch.repeat_interleave(rows_R, counts_R, output_size=int(offsets_R1[-1])), counts_R


def _check_lengths(
    head_offsets_R1: Offsets,
    head_ids_H: Tensor,
    head_logprobs_H: Tensor,
    tail_offsets_R1: Offsets,
    tail_ids_N: Tensor,
    log_tail_mass_R: Tensor,
) -> None:
    rows = len(log_tail_mass_R)
    for name, expected, got in (
        ("head_offsets", rows + 1, len(head_offsets_R1)),
        ("tail_offsets", rows + 1, len(tail_offsets_R1)),
        ("head_ids", int(head_offsets_R1[-1]), len(head_ids_H)),
        ("head_logprobs", int(head_offsets_R1[-1]), len(head_logprobs_H)),
        ("tail_ids", int(tail_offsets_R1[-1]), len(tail_ids_N)),
    ):
        if expected != got:
            raise InvalidRecordError(f"a sparse target of {rows} rows needs {expected} values in {name}, got {got}")
    if rows and np.diff(head_offsets_R1).min() < 1:
        row = int(np.diff(head_offsets_R1).argmin())
        raise InvalidRecordError(f"row {row} of a sparse target has an empty head; the next token must be in it")


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
        policy_R4=_some(target.policy_R4, rows_K),
    )


def _entries(offsets_R1: Offsets, rows_K: NDArray[np.int64]) -> tuple[Offsets, NDArray[np.int64]]:
    """Offsets of the rows taken, and the indices of their entries."""
    counts_K = np.diff(offsets_R1)[rows_K]
    offsets_K1 = np.concatenate([[0], np.cumsum(counts_K)]).astype(np.int64)
    return offsets_K1, np.arange(int(offsets_K1[-1])) + np.repeat(offsets_R1[rows_K] - offsets_K1[:-1], counts_K)


def _some(column: Any, at: Any) -> Any:
    return None if column is None else column[at]
