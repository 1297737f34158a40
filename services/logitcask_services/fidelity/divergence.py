"""How far what a record says of a position is from the whole distribution, in nats. Everything in float64.

A record names some tokens and says what all others have together. Over these parts, the named tokens and the rest, the
divergence is exact; over the whole vocabulary it is a lower bound (data processing), which nothing but the shape inside
the rest can exceed. All divergences are KL(said || true): what a student that learned the record perfectly would be
away from the truth. This direction is finite for a truncated top-k, too, whose other one is infinite.

Each is a sum of b log(b/a) - b + a over parts with b said and a true. Both sides add up to one, so this is the KL; no
term is negative, so rounding of single log-probabilities enters squared and not as it is.

How much the draws of a record scatter is the exact variance of an estimate over all that could have been drawn. A
systematic sample has one random number, so every estimate from it is a step function of that number: it changes where a
point passes from one token to the next, and the variance is a sum over the steps. No draws are made.

Shape legend: R positions, V vocabulary, H named tokens and N draws over all positions, M tokens of one tail.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.record.capture_spec import Sampler
from logitcask_schemas.record.records import Records

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTokens:
    """What a record says: log-probabilities of its named tokens, and of all others together."""

    rows_H: Rows
    ids_H: Rows
    logprobs_H: Floats
    log_rest_R: Floats
    """-inf where nothing is left."""

    @classmethod
    def of(cls, records: Records) -> Self:
        """As the record has them."""
        return cls(
            rows_H=np.repeat(np.arange(records.num_positions), records.head_counts_P),
            ids_H=records.head_ids_H.astype(np.int64),
            logprobs_H=records.head_logprobs_H.astype(np.float64),
            log_rest_R=records.log_tail_mass_P.astype(np.float64),
        )

    @classmethod
    def as_trained(cls, records: Records, *, drawn: bool) -> Self:
        """As the trainer reads them: the head scaled to 1 - r, which undoes the codec's rounding of the sum.

        Args:
            records: of one document.
            drawn: of mode `threshold` or `sampled`, where a row without draws has no rest. In mode `topk` it has one.
        """
        stored = cls.of(records)
        log_rest_R = stored.log_rest_R
        if drawn:
            log_rest_R = np.where(records.tail_counts_P > 0, log_rest_R, -np.inf)
        sums_R = np.bincount(stored.rows_H, np.exp(stored.logprobs_H), records.num_positions)
        with np.errstate(divide="ignore"):
            log_scale_R = np.log(-np.expm1(log_rest_R)) - np.log(sums_R)
        return cls(
            rows_H=stored.rows_H,
            ids_H=stored.ids_H,
            logprobs_H=stored.logprobs_H + log_scale_R[stored.rows_H],
            log_rest_R=log_rest_R,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two records of the same positions."""

    kl_R: Floats
    """Over the tokens that both name and the rest."""
    common: int
    """Tokens that both name, over all positions."""
    named: int
    """Those that the first names."""
    largest: float
    """Largest difference of a log-probability that both name."""


def between(said: NamedTokens, true: NamedTokens) -> Comparison:
    """KL(said || true) of two records; tokens that only one of them names are part of the rest."""
    rows = len(said.log_rest_R)
    width = 1 + max(int(said.ids_H.max(initial=0)), int(true.ids_H.max(initial=0)))
    _, at_said, at_true = np.intersect1d(
        said.rows_H * width + said.ids_H, true.rows_H * width + true.ids_H, return_indices=True
    )
    b, a = said.logprobs_H[at_said], true.logprobs_H[at_true]
    named_R = np.bincount(said.rows_H[at_said], terms(b, a), rows)
    kl_R: Floats = named_R + terms(_rest_beside(said, at_said), _rest_beside(true, at_true))
    return Comparison(kl_R=kl_R, common=len(b), named=len(said.ids_H), largest=float(np.abs(b - a).max(initial=0.0)))


def against_plain(said: NamedTokens, log_true_RV: Floats) -> Floats:
    """KL(said || true) of each position, [R], from the whole log-probabilities [R, V] of the truth."""
    head_at = (said.rows_H, said.ids_H)
    kl_R = np.bincount(said.rows_H, terms(said.logprobs_H, log_true_RV[head_at]), len(log_true_RV))
    rest_RV = np.exp(log_true_RV)
    rest_RV[head_at] = 0.0
    with np.errstate(divide="ignore"):
        log_rest_R = np.log(rest_RV.sum(1))
    divergence_R: Floats = kl_R + terms(said.log_rest_R, log_rest_R)
    return divergence_R


def whole(log_said_RV: Floats, log_true_RV: Floats) -> Floats:
    """KL(said || true) of each position over the whole vocabulary, [R]."""
    divergence_R: Floats = terms(log_said_RV, log_true_RV).sum(1)
    return divergence_R


def entropy(log_true_RV: Floats) -> Floats:
    """H(t) of each position, [R]."""
    t_RV = np.exp(log_true_RV)
    entropy_R: Floats = -(t_RV * np.where(t_RV > 0, log_true_RV, 0.0)).sum(1)
    return entropy_R


def target_excess(records: Records, log_true_RV: Floats, *, drawn: bool) -> Floats:
    """Cross-entropy from the training target to the teacher, less the teacher's entropy: sum_j (t̂_j - t_j) (-log t_j).

    Its mean is zero where the target is unbiased. Of one position it is what the draws happened to say.

    Args:
        records: of R positions.
        log_true_RV: of the teacher.
        drawn: see `NamedTokens.as_trained`. Without draws the target is the head alone, scaled to one.
    """
    head = NamedTokens.as_trained(records, drawn=True)  # a row without draws is its head, in every mode
    positions = records.num_positions
    cross_R = np.bincount(head.rows_H, -np.exp(head.logprobs_H) * log_true_RV[head.rows_H, head.ids_H], positions)
    if drawn:
        rows_N = np.repeat(np.arange(positions), records.tail_counts_P)
        share_R = np.exp(head.log_rest_R) / np.maximum(records.tail_counts_P, 1)
        ids_N = records.tail_ids_N.astype(np.int64)
        cross_R = cross_R + np.bincount(rows_N, -share_R[rows_N] * log_true_RV[rows_N, ids_N], positions)
    excess_R: Floats = cross_R - entropy(log_true_RV)
    return excess_R


def truncated(log_true_RV: Floats, k: int) -> tuple[Floats, Floats]:
    """What the k most probable tokens lose, scaled to one as if there were no others, [R] each.

    Returns:
        KL(truncated || true), which is -log of the mass that is kept; and `target_excess` of this target, which is
        below zero: the teacher's doubt that the student never sees.
    """
    width = log_true_RV.shape[1]
    top_Rk = np.partition(log_true_RV, width - k, axis=1)[:, width - k :] if k < width else log_true_RV
    kept_R = np.exp(top_Rk).sum(1)
    cross_R = -(np.exp(top_Rk) * top_Rk).sum(1) / kept_R
    return np.abs(np.log(np.minimum(kept_R, 1.0))), cross_R - entropy(log_true_RV)


def terms(log_said: Any, log_true: Any) -> Floats:
    """Terms b log(b/a) - b + a, with log b said and log a true; 0 log 0 is 0."""
    b, a = np.exp(log_said), np.exp(log_true)
    with np.errstate(invalid="ignore"):
        gap = np.asarray(log_true - log_said)
        near = np.clip(gap, -1.0, 1.0)
        value = np.where(np.abs(gap) < 1, b * (np.expm1(near) - near), a - b - b * gap)
    result: Floats = np.where(np.isneginf(log_said), a, value)
    return result


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


def _rest_beside(named: NamedTokens, kept: Rows) -> Floats:
    """Log of what is left beside some of the named tokens, [R]."""
    other_H = np.ones(len(named.ids_H), dtype=np.bool_)
    other_H[kept] = False
    others_R = np.bincount(named.rows_H[other_H], np.exp(named.logprobs_H[other_H]), len(named.log_rest_R))
    with np.errstate(divide="ignore"):
        log_rest_R: Floats = np.log(np.exp(named.log_rest_R) + others_R)
    return log_rest_R
