"""What failures cost when a worker that dies loses its open chunk, in closed form.

A worker takes chunks of w seconds. It fails at random, at rate 1/M (M: its mean time between failures), and is back
after R seconds; the chunk is captured again from its beginning, by it or by another. Then

    seconds per chunk, failures included    E = (e^(w/M) - 1) (M + R)
    slowdown                                E / w,   near 1 + w / 2M + R / M
    work lost per failure                   M - w / (e^(w/M) - 1),   near w / 2

The simulated fleet (bench/fleet.py) comes to the same numbers.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCosts:
    """Of one worker."""

    slowdown: float
    """Time with failures over time without, at least 1."""
    lost_seconds: float
    """Work of an open chunk that a failure destroys, on average."""


def failure_costs(chunk_seconds: float, mean_seconds_between: float, restart_seconds: float) -> FailureCosts:
    """What failures cost a worker.

    Args:
        chunk_seconds: Work of a chunk, w.
        mean_seconds_between: Of the worker's failures, M; infinite where it has none.
        restart_seconds: From a failure to the next chunk's first token, R.
    """
    if math.isinf(mean_seconds_between):
        return FailureCosts(slowdown=1.0, lost_seconds=0.0)
    w, mean = chunk_seconds, mean_seconds_between
    if w > 700 * mean:  # e^700 is about the largest float
        return FailureCosts(slowdown=math.inf, lost_seconds=mean)
    grown = math.expm1(w / mean)
    return FailureCosts(slowdown=grown * (mean + restart_seconds) / w, lost_seconds=mean - w / grown)
