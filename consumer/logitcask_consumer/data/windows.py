"""Cutting documents into windows that fit a training sequence, without losing a position.

Shape legend: D documents, W windows; all numbers count positions (a document of L tokens has L - 1).

A document of at most S positions is one window. A longer one is cut into windows of S slots, each starting `overlap`
positions before the previous one ended. The overlapping slots give context and carry no loss: every position of every
document is trained exactly once. Position i of a later window sees at least `overlap` tokens before it, fewer than the
teacher saw; that is the price of a sequence shorter than the document, and it shrinks as `overlap` grows.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data.recorded import RecordedPositions
from logitcask_schemas.errors import LogitcaskError


class WindowError(LogitcaskError, ValueError):
    """Sequence length and overlap do not fit each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """W windows over D documents, in order of document and start."""

    document_W: NDArray[np.int64]
    start_W: NDArray[np.int64]
    """First position of the window within its document."""
    trained_W: NDArray[np.int64]
    """First position that carries loss; those from `start_W` on before it are context."""
    stop_W: NDArray[np.int64]
    """One past the last position."""
    records_W: NDArray[np.int64]
    """How many of the positions that carry loss have a record."""

    def __len__(self) -> int:
        return len(self.document_W)

    @property
    def slots_W(self) -> NDArray[np.int64]:
        """Slots of a training sequence that each window fills."""
        return self.stop_W - self.start_W

    @classmethod
    def cut(cls, positions_D: NDArray[np.int64], *, seq_len: int, overlap: int) -> Self:
        """Cut documents of `positions_D` positions; documents without positions (one token) give no window.

        Raises:
            WindowError: seq_len is below 1, or the overlap is negative or not smaller than seq_len.
        """
        if seq_len < 1 or not 0 <= overlap < seq_len:
            raise WindowError(
                f"a sequence length of at least 1 and an overlap from 0 to below it are needed, got seq_len={seq_len} "
                f"and overlap={overlap}"
            )
        stride = seq_len - overlap
        beyond_D = np.maximum(positions_D - seq_len, 0)
        windows_D = np.where(positions_D > 0, 1 + -(-beyond_D // stride), 0)
        document_W = np.repeat(np.arange(len(positions_D)), windows_D)
        ordinal_W = np.arange(len(document_W)) - np.repeat(np.cumsum(windows_D) - windows_D, windows_D)
        start_W = ordinal_W * stride
        trained_W = start_W + np.where(ordinal_W > 0, overlap, 0)
        stop_W = np.minimum(start_W + seq_len, positions_D[document_W])
        return cls(
            document_W=document_W, start_W=start_W, trained_W=trained_W, stop_W=stop_W, records_W=stop_W - trained_W
        )

    def with_records(self, recorded: RecordedPositions) -> Self:
        """Those in which a position that carries loss has a record."""
        records_W = recorded.between(self.document_W, self.trained_W, self.stop_W)
        kept_W = records_W > 0
        return type(self)(
            document_W=self.document_W[kept_W],
            start_W=self.start_W[kept_W],
            trained_W=self.trained_W[kept_W],
            stop_W=self.stop_W[kept_W],
            records_W=records_W[kept_W],
        )
