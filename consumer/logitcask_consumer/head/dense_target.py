"""The teacher's whole distribution as a target: made anew for each block of rows from its last hidden states and head.

Shape legend: T rows, R rows of a block, D width of the teacher's states, V ids of its logits.

A block's target has heads of all V ids and no tail, so that every formula that sees head, tail mass and draws gives its
dense value. The dense logits exist for one block of rows at a time; an entry of such a head takes some twenty times the
memory of a logit, and a block has that many times fewer rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from logitcask_consumer.head.fused_head import chunk_bytes
from logitcask_consumer.head.lm_head import LMHead
from logitcask_consumer.losses.target import SparseTarget

_BYTES_PER_ENTRY: Final = 80
"""Of a block: id, row, weight, index into the logits, student's log-probability and its gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTarget:
    """T rows of a teacher, each the softmax of all its logits."""

    states: Callable[[Any], Tensor]
    """The teacher's last hidden states of some rows, a slice or an int64 index of them: [R, D], what its head reads."""
    head: LMHead
    """The teacher's, on the rows' device."""
    next_ids_R: Tensor
    documents_R: Tensor
    temperature: float | None = None
    """Of log Z, where a loss needs it."""
    dtype: torch.dtype = torch.float32
    entropy_R: Tensor = field(default_factory=lambda: torch.zeros(0))
    """H(t) in nats, known of the rows that have been read."""

    @classmethod
    def of(
        cls,
        states: Callable[[Any], Tensor],
        head: LMHead,
        *,
        next_ids_R: Tensor,
        documents_R: Tensor,
        temperature: float | None,
    ) -> Self:
        """A target none of whose rows has been read."""
        return cls(
            states=states,
            head=head,
            next_ids_R=next_ids_R.to(torch.int64),
            documents_R=documents_R,
            temperature=temperature,
            entropy_R=torch.zeros(len(next_ids_R), dtype=torch.float64, device=next_ids_R.device),
        )

    @property
    def num_rows(self) -> int:
        """T."""
        return len(self.next_ids_R)

    def take(self, rows_K: Tensor) -> Self:
        """The target of some rows."""
        states = self.states
        return replace(
            self,
            states=lambda at: states(rows_K[at]),
            next_ids_R=self.next_ids_R[rows_K],
            documents_R=self.documents_R[rows_K],
            entropy_R=self.entropy_R[rows_K],
        )

    def to_dtype(self, dtype: torch.dtype) -> Self:
        """The same rows, in another dtype; the entropies are shared."""
        return replace(self, dtype=dtype)

    @torch.no_grad()
    def log_probs(self, at: Any) -> Tensor:
        """The teacher's log-probabilities of some rows, [R, V], nats."""
        states_RD = self.states(at).to(self.head.weight_VD.dtype)
        with torch.autocast(states_RD.device.type, enabled=False):
            return torch.log_softmax(self.head.logits(states_RD).to(self.dtype), -1)

    @torch.no_grad()
    def rows(self, start: int, stop: int) -> SparseTarget:
        """Rows start..stop-1, and note of their entropies."""
        logprobs_RV = self.log_probs(slice(start, stop))
        rows, ids = logprobs_RV.shape
        device = logprobs_RV.device
        probs_RV = logprobs_RV.exp()
        # Ids without probability have a logarithm of -inf, and no part in the entropy.
        entropy_R = -(probs_RV * logprobs_RV.clamp(min=torch.finfo(self.dtype).min)).sum(1)
        self.entropy_R[start:stop] = entropy_R.to(self.entropy_R.dtype)
        log_z_R = None if self.temperature is None else torch.logsumexp(logprobs_RV / self.temperature, 1)
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return SparseTarget(
            head_ids_H=torch.arange(ids, device=device).repeat(rows),
            head_weights_H=probs_RV.flatten(),
            head_rows_H=torch.arange(rows, device=device).repeat_interleave(ids),
            head_offsets_R1=np.arange(rows + 1, dtype=np.int64) * ids,
            tail_ids_N=nothing,
            tail_weights_N=nothing.to(self.dtype),
            tail_rows_N=nothing,
            tail_offsets_R1=np.zeros(rows + 1, dtype=np.int64),
            tail_mass_R=probs_RV.new_zeros(rows),
            log_tail_mass_R=probs_RV.new_full((rows,), -torch.inf),
            next_ids_R=self.next_ids_R[start:stop],
            tail_logprobs_N=nothing.to(self.dtype),
            entropy_R=entropy_R,
            log_z_R=log_z_R,
            documents_R=self.documents_R[start:stop],
        )

    @property
    def block_rows(self) -> int:
        """Rows of a block whose entries take about what the logits of a sparse one's block take."""
        return max(1, chunk_bytes(self.head.weight_VD.device) // (_BYTES_PER_ENTRY * self.head.vocab_size))
