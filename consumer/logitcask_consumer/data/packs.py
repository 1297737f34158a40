"""Sequences as lists of the windows that they are packed of.

Shape legend: W windows, B sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Packs:
    """B sequences as a ragged list of windows."""

    windows_W: NDArray[np.int64]
    """Window numbers, sequence after sequence."""
    offsets_B1: NDArray[np.int64]
    """B + 1 offsets into `windows_W`."""

    def __len__(self) -> int:
        return len(self.offsets_B1) - 1

    def __getitem__(self, sequence: int) -> NDArray[np.int64]:
        """Window numbers of one sequence."""
        return self.windows_W[self.offsets_B1[sequence] : self.offsets_B1[sequence + 1]]

    @classmethod
    def of(cls, sequence_W: NDArray[np.int64], sequences: int) -> Self:
        """From the sequence of each window: windows in the order of their numbers within one."""
        counts_B = np.bincount(sequence_W, minlength=sequences)
        offsets_B1 = np.concatenate([[0], np.cumsum(counts_B)])
        return cls(windows_W=np.argsort(sequence_W, kind="stable"), offsets_B1=offsets_B1)

    def take(self, sequences: Sequence[int]) -> Self:
        """Some of the sequences, in this order; a negative number gives one without windows."""
        chosen = [self[sequence] if sequence >= 0 else self.windows_W[:0] for sequence in sequences]
        return type(self)(
            windows_W=np.concatenate([self.windows_W[:0], *chosen]),
            offsets_B1=np.array(list(accumulate(map(len, chosen), initial=0)), dtype=np.int64),
        )
