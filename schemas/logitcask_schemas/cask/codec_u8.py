"""Log-probabilities in one byte, rounded at random so that the probability is right on average.

A code stands for a level of log t; levels lie closer where probabilities are large, since an error of log t moves the
gradient by t times that error. A value between two levels goes to one of them with the chance that makes the expected
probability t itself: E[exp(decoded)] = t, so the target's expectation, and with it the expected gradient, is what it
was before. Rounding log t instead would be unbiased in a quantity no loss is linear in.

The noise: with levels a step of s apart, the relative standard deviation of t is at most sinh(s / 2), and the relative
error below exp(s) - 1. The codec holds head and draw log-probabilities only: log r and entropies are one value per
position, where a byte buys little and its noise would move all of a position's draws together.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.codec_random import random_words
from logitcask_schemas.records import LogprobArray

SEGMENTS: Final = ((128, 1 / 64), (64, 1 / 32), (32, 1 / 8), (31, 1 / 2))
"""Steps, in nats, that lead from code 0 (log t = 0) to code 255 (log t = -23.5)."""
LEVELS: Final[NDArray[np.float64]] = -np.cumsum([0.0, *(step for number, step in SEGMENTS for _ in range(number))])
"""log t of each code, [256], descending; exact in float16."""
_DECODED: Final[NDArray[np.float16]] = LEVELS.astype(np.float16)
STREAMS: Final = {"head_logprobs": 1, "tail_logprobs": 2}
"""The random stream of each column that the codec applies to."""


def encode_u8(logprobs: LogprobArray, *, column: str, seed: int, document_id: bytes) -> NDArray[np.uint8]:
    """Codes of one document's column.

    Args:
        logprobs: log t, [N], not NaN; values outside [-23.5, 0] are moved to its ends (an error of t below 6.3e-11).
            A value that is a level keeps its code, so decoded columns encode to what they came from.
        column: "head_logprobs" or "tail_logprobs".
        seed: `CaptureSpec.seed`.
        document_id: 32 bytes.
    """
    depth = np.clip(-logprobs.astype(np.float64), 0.0, -LEVELS[-1])
    code = np.searchsorted(-LEVELS, depth, side="right") - 1
    upper, lower = -LEVELS[code], -LEVELS[np.minimum(code + 1, len(LEVELS) - 1)]
    # (e^-upper - t) / (e^-upper - e^-lower); the last level has no next one and is hit exactly.
    step = np.where(lower > upper, lower - upper, 1.0)
    chance = np.expm1(upper - depth) / np.expm1(-step)
    uniform = random_words(seed, document_id, STREAMS[column], len(logprobs)) * 2.0**-32
    codes: NDArray[np.uint8] = (code + (uniform < chance)).astype(np.uint8)
    return codes


def decode_u8(codes: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Log t of each code, exact in float16."""
    return _DECODED[codes]
