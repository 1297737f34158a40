"""Where the windows of some sequences lie in a batch: the layout that all collators share.

Shape legend: B sequences, S slots of a sequence, W windows, K used slots of all sequences, L tokens.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NO_LABEL: Final = -100
"""What transformers and torch leave out of a loss."""
FILL_ID: Final = 0
"""Token id of unused slots, which no trained position sees. Every embedding has a row for it; a tokenizer's padding id
may have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The used slots of a batch, sequence after sequence, window after window."""

    offsets_B1: NDArray[np.int64]
    """[B + 1], used slots of the sequences before."""
    counts_W: NDArray[np.int64]
    """Slots of each window."""
    within_K: NDArray[np.int64]
    """Number within the window."""
    token_K: NDArray[np.int64]
    """Index of the slot's input token among the windows' tokens; the one after it is its next token."""
    width: int
    """S: the longest sequence, rounded up."""

    @classmethod
    def of(
        cls,
        token_offsets_W1: NDArray[np.int64],
        window_offsets_B1: NDArray[np.int64],
        *,
        seq_len: int,
        multiple_of: int,
    ) -> Self:
        """Lay out windows.

        Args:
            token_offsets_W1: tokens of the windows before; every window has one token more than slots.
            window_offsets_B1: windows of the sequences before.
            seq_len: largest S.
            multiple_of: S is the longest sequence rounded up to this, at most `seq_len`.

        Raises:
            ValueError: a sequence is longer than `seq_len`.
        """
        windows = len(token_offsets_W1) - 1
        before_W1 = token_offsets_W1 - np.arange(windows + 1)
        counts_W, slot_K = np.diff(before_W1), np.arange(int(before_W1[-1]))
        offsets_B1 = before_W1[window_offsets_B1]
        longest = int(np.diff(offsets_B1).max(initial=0))
        if longest > seq_len:
            raise ValueError(
                f"a sequence has {longest} slots, the collator's seq_len is {seq_len}: give it the dataset's"
            )
        return cls(
            offsets_B1=offsets_B1,
            counts_W=counts_W,
            within_K=slot_K - np.repeat(before_W1[:-1], counts_W),
            token_K=slot_K + np.repeat(np.arange(windows), counts_W),
            width=min(max(1, -(-longest // multiple_of)) * multiple_of, seq_len),
        )

    @property
    def flat_K(self) -> NDArray[np.int64]:
        """Flat index b·S + s of each used slot."""
        # A sequence's slots lie (its first slot in the batch - the used slots before it) further on.
        shift_B = np.arange(len(self.offsets_B1) - 1) * self.width - self.offsets_B1[:-1]
        flat_K: NDArray[np.int64] = np.arange(len(self.within_K)) + np.repeat(shift_B, np.diff(self.offsets_B1))
        return flat_K

    def input_ids(self, token_ids_L: NDArray[Any]) -> Tensor:
        """int64 [B, S]: the tokens of the windows; `FILL_ID` in unused slots."""
        return self._rows(token_ids_L[self.token_K], fill=FILL_ID)

    def position_ids(self) -> Tensor:
        """int64 [B, S]: counts from 0 in every window; 0 in unused slots."""
        return self._rows(self.within_K, fill=0)

    def labels(self, slots_T: NDArray[np.int64], next_ids_T: NDArray[Any]) -> Tensor:
        """int64 [B, S]: the next token of each trained slot, in the slot that predicts it; `NO_LABEL` elsewhere."""
        labels = np.full((len(self.offsets_B1) - 1, self.width), NO_LABEL, dtype=np.int64)
        labels.reshape(-1)[slots_T] = next_ids_T
        return torch.from_numpy(labels)

    def _rows(self, values_K: NDArray[Any], *, fill: int) -> Tensor:
        rows = np.full((len(self.offsets_B1) - 1, self.width), fill, dtype=np.int64)
        for row, (start, stop) in zip(rows, pairwise(self.offsets_B1.tolist()), strict=True):
            row[: stop - start] = values_K[start:stop]
        return torch.from_numpy(rows)
