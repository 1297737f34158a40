"""Philox4x32-10 in numpy: the random words behind stochastic rounding.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The same generator as the draws of
capture, under the same key, on counters that no draw uses: a value's random word is a pure function of
(seed, document, column, index), so equal records give equal bytes wherever and in whatever order they are stored.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.record.records import LogprobArray

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteScale:
    """The values that the 256 codes of a column stand for."""

    stream: int
    """Of the random numbers that round the column, see `random_words`."""
    levels: NDArray[np.float64]
    """By code, [256], all exact in float16."""
    as_probability: bool
    """Whether the values are logarithms, of what is unbiased; else they themselves are."""
    minus_infinity: bool = False
    """Whether the last code stands for minus infinity."""

    @property
    def finite(self) -> NDArray[np.float64]:
        """Distances of the finite levels from the first one, ascending."""
        return np.abs(self.levels[:-1] if self.minus_infinity else self.levels)


def _steps(*segments: tuple[int, float]) -> NDArray[np.float64]:
    """The levels from 0 on, so many steps of each size."""
    return np.cumsum([0.0, *(step for number, step in segments for _ in range(number))])


SEGMENTS: Final = ((128, 1 / 64), (64, 1 / 32), (32, 1 / 8), (31, 1 / 2))
"""Steps, in nats, that lead from code 0 (log t = 0) to code 255 (log t = -23.5)."""
LEVELS: Final[NDArray[np.float64]] = -_steps(*SEGMENTS)
"""log t of each code, [256], descending; exact in float16."""
_MASS_LEVELS: Final = np.append(LEVELS[:-1], -np.inf)
_ENTROPY_LEVELS: Final = _steps((128, 1 / 32), (64, 1 / 16), (63, 1 / 4))
SCALES: Final = {
    "head_logprobs": ByteScale(stream=1, levels=LEVELS, as_probability=True),
    "tail_logprobs": ByteScale(stream=2, levels=LEVELS, as_probability=True),
    "log_tail_mass": ByteScale(stream=3, levels=_MASS_LEVELS, as_probability=True, minus_infinity=True),
    "entropy": ByteScale(stream=4, levels=_ENTROPY_LEVELS, as_probability=False),
}
"""By column that the codec applies to."""
_DECODED: Final = {name: scale.levels.astype(np.float16) for name, scale in SCALES.items()}


def encode_u8(values: LogprobArray, *, column: str, seed: int, document_id: bytes) -> NDArray[np.uint8]:
    """Codes of one document's column.

    Args:
        values: Of the column, [N], not NaN; those outside its levels are moved to their ends. A value that is a level
            keeps its code, so decoded columns encode to what they came from.
        column: Its name, of `SCALES`.
        seed: `CaptureSpec.seed`.
        document_id: 32 bytes.
    """
    scale = SCALES[column]
    levels = scale.finite
    sign = -1.0 if scale.as_probability else 1.0
    depth = np.clip(sign * values.astype(np.float64), 0.0, levels[-1])
    code = np.searchsorted(levels, depth, side="right") - 1
    upper, lower = levels[code], levels[np.minimum(code + 1, len(levels) - 1)]
    # The last level has no next one and is hit exactly.
    step = np.where(lower > upper, lower - upper, 1.0)
    # In probability: (e^-upper - t) / (e^-upper - e^-lower).
    chance = np.expm1(upper - depth) / np.expm1(-step) if scale.as_probability else (depth - upper) / step
    uniform = random_words(seed, document_id, scale.stream, len(values)) * 2.0**-32
    codes: NDArray[np.uint8] = (code + (uniform < chance)).astype(np.uint8)
    if scale.minus_infinity:
        codes[np.isneginf(values)] = len(levels)
    return codes


def decode_u8(codes: NDArray[np.uint8], column: str = "head_logprobs") -> NDArray[np.float16]:
    """The value of each code of a column, exact in float16."""
    return _DECODED[column][codes]
