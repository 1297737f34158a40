"""Aligned chunks: the shortest runs of tokens that stand for the same bytes in two tokenisations of one text.

Shape legend: A, B tokens of the two tokenisations, C chunks.

Two tokenisations of one text meet wherever both have a token that ends at the same byte. Between two such places next
to each other lies a chunk. There is nothing to choose: the ends both have in common are all the places where a run of
one can equal a run of the other, so these chunks are the smallest ones.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """C chunks; chunk c is tokens bounds[c] to bounds[c + 1] - 1 of either side."""

    first_bounds_C1: NDArray[np.int64]
    second_bounds_C1: NDArray[np.int64]
    bytes_C1: NDArray[np.int64]
    """Where the chunks begin and end in the text."""

    def __len__(self) -> int:
        return len(self.bytes_C1) - 1

    @classmethod
    def of(cls, first_lengths_A: NDArray[np.int64], second_lengths_B: NDArray[np.int64]) -> Self:
        """Align two tokenisations that begin at the same byte.

        Args:
            first_lengths_A: bytes of each token.
            second_lengths_B: the same of the other tokenisation. Where one text goes on after the other's end, the
                chunks stop at the last place where both have an end.
        """
        first_ends_A, second_ends_B = np.cumsum(first_lengths_A), np.cumsum(second_lengths_B)
        common = np.intersect1d(first_ends_A, second_ends_B)
        bytes_C1 = np.concatenate([[0], common[common > 0]]).astype(np.int64)
        return cls(
            first_bounds_C1=_bounds(first_ends_A, bytes_C1),
            second_bounds_C1=_bounds(second_ends_B, bytes_C1),
            bytes_C1=bytes_C1,
        )


def _bounds(ends: NDArray[np.int64], bytes_C1: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens before each place; a token without bytes belongs to the chunk before it, or to the first one."""
    bounds = np.searchsorted(ends, bytes_C1, side="right")
    bounds[0] = 0
    return bounds
