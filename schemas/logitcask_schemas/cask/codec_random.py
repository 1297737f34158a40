"""Philox4x32-10 in numpy: the random words behind stochastic rounding.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The same generator as the draws of
capture, under the same key, on counters that no draw uses: a value's random word is a pure function of
(seed, document, column, index), so equal records give equal bytes wherever and in whatever order they are stored.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_MASK: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)
_ROUNDS: Final = 10


def random_words(seed: int, document_id: bytes, stream: int, count: int) -> NDArray[np.uint32]:
    """One 32-bit word per value of a column.

    Word i is output word i mod 4 of counter (i div 4, stream, document low, document high) under key (seed low, seed
    high), where document low and high are the first two little-endian u32 of the document id. A draw's counter has
    the upper half of its position, 0, where `stream` stands here.

    Args:
        seed: `CaptureSpec.seed`, below 2^63.
        document_id: 32 bytes.
        stream: Which column, from 1.
        count: How many words.
    """
    blocks = -(-count // 4)
    low, high = (np.uint64(word) for word in np.frombuffer(document_id[:8], dtype="<u4"))
    counter = [np.arange(blocks, dtype=np.uint64)] + [
        np.full(blocks, word, dtype=np.uint64) for word in (np.uint64(stream), low, high)
    ]
    return np.stack(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)), axis=1).reshape(-1)[:count].astype(np.uint32)


def philox4x32(counter: list[NDArray[np.uint64]], key: tuple[int, int]) -> list[NDArray[np.uint64]]:
    """Ten rounds of Philox4x32 on four arrays of 32-bit words, held in uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product_1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product_1 & _MASK,
            (product_0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product_0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return [c0, c1, c2, c3]
