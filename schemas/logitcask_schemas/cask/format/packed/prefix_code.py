"""Canonical prefix codes: symbols that are frequent in a shard take few bits, rare ones at most `MAX_BITS`.

A code is the number of bits of each symbol and nothing else; the bits follow from it. They are written from the lowest
bit of a word upwards, the first bit of a code first, so that a reader looks up the lowest bits of what comes next.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import CaskCorruptionError

MAX_BITS: Final = 10
"""Of a code: its lookup table, of 2^10 numbers of 16 bits, stays in the processor's nearest cache."""
NO_CODE: Final = 15
"""Stands for the number of bits in a lookup table where no code starts with these bits."""
_SYMBOL_SHIFT: Final = 4


@dataclass(frozen=True, slots=True)
class PrefixCode:
    """A code for the symbols 0 ... S - 1, S at most 256."""

    lengths_S: NDArray[np.uint8]
    """Bits of each symbol; 0 of those that do not occur. The last symbol occurs, or there is none."""

    @classmethod
    def of_counts(cls, counts_S: NDArray[np.int64]) -> Self:
        """The code that writes symbols of these counts in the fewest bits."""
        used = np.flatnonzero(counts_S)
        lengths = np.zeros(int(used[-1]) + 1 if len(used) else 0, dtype=np.uint8)
        if len(used) == 1:
            lengths[used] = 1
        elif len(used):
            lengths[used] = _limited_lengths([int(count) for count in counts_S[used]])
        return cls(lengths)

    @classmethod
    def parsed(cls, text: str, *, symbols: int) -> Self:
        """A code from `text`.

        Args:
            text: One hex digit per symbol, its number of bits.
            symbols: How many there may be.

        Raises:
            CaskCorruptionError: It is no such text, or the bits of two symbols begin alike, or some bits begin none.
        """
        try:
            lengths = np.array([int(digit, 16) for digit in text], dtype=np.uint8)
        except ValueError as error:
            raise CaskCorruptionError(f"a code of hex digits was expected, got {text[:64]!r}") from error
        used = lengths[lengths > 0].astype(np.int64)
        if len(lengths) > symbols or (used > MAX_BITS).any() or (len(lengths) and not lengths[-1]):
            raise CaskCorruptionError(
                f"a code of at most {symbols} symbols with 1 to {MAX_BITS} bits was expected, got {text[:64]!r}"
            )
        filled = int((1 << (MAX_BITS - used)).sum())
        if (len(used) > 1 and filled != 1 << MAX_BITS) or (len(used) == 1 and used[0] != 1):
            raise CaskCorruptionError(
                f"the {len(used)} symbols of a code fill {filled} of {1 << MAX_BITS} parts, expected all: {text[:64]!r}"
            )
        return cls(lengths)

    @property
    def text(self) -> str:
        """Its lengths, a hex digit each."""
        return "".join(f"{length:x}" for length in self.lengths_S.tolist())

    @property
    def bits_S(self) -> NDArray[np.uint64]:
        """What is written for each symbol, its first bit lowest."""
        bits = np.zeros(len(self.lengths_S), dtype=np.uint64)
        code, previous = 0, 0
        # Shorter codes first, symbols of one length in their order: what "canonical" means.
        for symbol in sorted(np.flatnonzero(self.lengths_S).tolist(), key=lambda symbol: self.lengths_S[symbol]):
            length = int(self.lengths_S[symbol])
            code <<= length - previous
            bits[symbol] = int(f"{code:0{length}b}"[::-1], 2)
            code, previous = code + 1, length
        return bits

    def lookup(self, *, empty_is_zero: bool) -> NDArray[np.uint16]:
        """By the next `MAX_BITS` bits: number of bits of the code that they start with, and 16 times its symbol.

        Args:
            empty_is_zero: Whether a code without symbols writes zeros in no bits; otherwise it writes nothing at all.
        """
        if not len(self.lengths_S):
            return np.full(1 << MAX_BITS, 0 if empty_is_zero else NO_CODE, dtype=np.uint16)
        table = np.full(1 << MAX_BITS, NO_CODE, dtype=np.uint16)
        bits = self.bits_S
        for symbol in np.flatnonzero(self.lengths_S).tolist():
            length = int(self.lengths_S[symbol])
            table[int(bits[symbol]) :: 1 << length] = length | symbol << _SYMBOL_SHIFT
        return table


def _limited_lengths(counts: list[int]) -> list[int]:
    """Bits per symbol that make the sum of counts times bits least, none above `MAX_BITS`; by package-merge.

    Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes" (1990): every symbol is offered
    once per bit that it may take; pairs of the cheapest offers of one bit are offers of the next.
    """
    offers = sorted((count, [symbol]) for symbol, count in enumerate(counts))
    level = offers
    for _ in range(MAX_BITS - 1):
        pairs = [(low[0] + high[0], low[1] + high[1]) for low, high in zip(level[::2], level[1::2], strict=False)]
        level = sorted([*offers, *pairs], key=lambda offer: offer[0])
    chosen = np.concatenate([symbols for _, symbols in level[: 2 * len(counts) - 2]])
    lengths: list[int] = np.bincount(chosen, minlength=len(counts)).tolist()
    return lengths
