"""How much the draws of a record scatter: the exact variance of an estimate over all that could have been drawn.

A systematic sample has one random number, so every estimate from it is a step function of that number: it changes
where a point passes from one token to the next, and the variance is a sum over the steps. No draws are made.

Shape legend: V vocabulary, M tokens of the tail.
"""

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.record.capture_spec import Sampler

Floats = NDArray[np.float64]


def draw_variance(tail_V: Floats, values_V: Floats, draws: int, sampler: Sampler) -> float:
    """Variance of (r/n) times the sum of a value over n draws, which estimates sum_j t_j value_j over the tail.

    Args:
        tail_V: probabilities of the tokens outside the head; 0 of those in it. They add up to r.
        values_V: of each token; not looked at where `tail_V` is 0.
        draws: n; without any nothing is drawn, and nothing scatters.
        sampler: how they are drawn.
    """
    ids_M = np.flatnonzero(tail_V)
    if not draws or not len(ids_M):
        return 0.0
    t_M, values_M = tail_V[ids_M], values_V[ids_M]
    mass = float(t_M.sum())
    if sampler == "multinomial":
        mean = float(t_M @ values_M) / mass
        return mass / draws * float(t_M @ (values_M - mean) ** 2)
    return _systematic(t_M, values_M, mass / draws, draws)


def _systematic(t_M: Floats, values_M: Floats, share: float, draws: int) -> float:
    """The same of points u, u + 1, ..., in units of a draw's share, on the running sum; u from 0 to 1."""
    running_M = t_M.cumsum()
    # Tokens at the end may be too small to raise the sum: their edges are passed last, and none lies at n.
    running_M = np.minimum(running_M * (draws / running_M[-1]), np.nextafter(float(draws), 0.0))
    # At u = 0, a point on an edge still belongs to the token before: the step from it comes at u = 0.
    first_n = np.searchsorted(running_M[:-1], np.arange(draws), side="left")
    # At each edge but the last, one point goes over to the next token.
    edges = running_M[:-1] % 1.0
    order = np.argsort(edges, kind="stable")
    steps = np.diff(values_M)[order]
    sums = values_M[first_n].sum() + np.concatenate([[0.0], steps.cumsum()])
    widths = np.diff(edges[order], prepend=0.0, append=1.0)
    return share**2 * float(widths @ (sums - widths @ sums) ** 2)
