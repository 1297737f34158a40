"""A teacher's sparse distributions as a table of K ids and K weights per position, without bias whatever K is.

The weights of a position are those of the unbiased estimate: t_j for ids of the head, r / n for every draw of an id, so
that they add up to 1 and expect t. The cross-entropy of a student to them, -sum_k w_k log p(id_k), has the gradient of
the Kullback-Leibler divergence on average; it is the loss `forward_kl`.

Where a position has more ids than K, its largest weights stay as they are and the others are drawn: a weight w below
the threshold c is kept with probability w / c and then counts c. With c so that these probabilities and the ids that
stay add up to K, and systematic draws (one uniform a position), exactly K slots are used, the sum stays 1, and the
expectation of every weight is what it was. It is the rule by which capture chose the entries in the first place.

Shape legend: P positions, E entries of all positions, end to end, K slots of a table, B positions of a block, M entries
of its largest position. Weights are probabilities in float64.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.record.records import Records

_MAX_BLOCK: Final = 1 << 20
"""Entries of the positions that are reduced at a time: a few arrays of 8 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEntries:
    """The distinct ids of each position with their weights; of a position, head before draws, as they are stored."""

    counts_P: NDArray[np.int64]
    ids_E: NDArray[np.int64]
    weights_E: NDArray[np.float64]

    @property
    def starts_P(self) -> NDArray[np.int64]:
        """Where the entries of each position begin."""
        starts: NDArray[np.int64] = np.cumsum(self.counts_P) - self.counts_P
        return starts

    @property
    def rows_E(self) -> NDArray[np.int64]:
        """The position of each entry."""
        return np.repeat(np.arange(len(self.counts_P)), self.counts_P)

    @property
    def sums_P(self) -> NDArray[np.float64]:
        """Of the weights of each position; 1 up to rounding."""
        sums: NDArray[np.float64] = np.zeros(len(self.counts_P))
        np.add.at(sums, self.rows_E, self.weights_E)
        return sums

    @classmethod
    def of(cls, records: Records, *, sampled_tail: bool) -> Self:
        """The entries of some positions, with the mass of head and tail restored after the codec's rounding.

        Args:
            records: Of the positions.
            sampled_tail: Whether the capture mode draws from the tail: r is then 0 where there are no draws. In mode
                `topk` it never does, and the head is renormalised, which is biased.
        """
        head_counts, tail_counts = records.head_counts_P.astype(np.int64), records.tail_counts_P.astype(np.int64)
        positions = np.arange(len(head_counts))
        head_rows_H = np.repeat(positions, head_counts)
        log_r_P = records.log_tail_mass_P.astype(np.float64)
        drawn_P = (tail_counts > 0) & sampled_tail
        tail_mass_P = np.where(drawn_P, np.exp(log_r_P), 0.0)
        head_mass_P = np.where(drawn_P, -np.expm1(log_r_P), 1.0)
        head_weights_H = np.exp(records.head_logprobs_H.astype(np.float64))
        stored_P = np.bincount(head_rows_H, weights=head_weights_H, minlength=len(positions))
        scale_P = np.divide(head_mass_P, stored_P, out=np.zeros(len(positions)), where=stored_P > 0)
        ids_N, weights_N, tail_counts = _distinct_draws(records, tail_mass_P, tail_counts)
        # Head before draws, position by position: both keep their order and make room for the other.
        head_at = np.arange(len(head_rows_H)) + np.repeat(np.cumsum(tail_counts) - tail_counts, head_counts)
        tail_at = np.arange(len(ids_N)) + np.repeat(np.cumsum(head_counts), tail_counts)
        ids = np.empty(len(head_at) + len(tail_at), dtype=np.int64)
        weights = np.empty(len(ids), dtype=np.float64)
        ids[head_at], ids[tail_at] = records.head_ids_H, ids_N
        weights[head_at], weights[tail_at] = head_weights_H * scale_P[head_rows_H], weights_N
        return cls(counts_P=head_counts + tail_counts, ids_E=ids, weights_E=weights).without_zeros()

    def without_zeros(self) -> Self:
        """The entries that weigh anything."""
        keep_E = self.weights_E > 0
        if keep_E.all():
            return self
        counts_P = np.bincount(self.rows_E[keep_E], minlength=len(self.counts_P))
        return type(self)(counts_P=counts_P, ids_E=self.ids_E[keep_E], weights_E=self.weights_E[keep_E])

    def reduced(self, width: int, uniform_P: NDArray[np.float64]) -> Self:
        """At most so many entries per position, the same in expectation over the uniforms and of the same sum.

        Args:
            width: K, at least 1.
            uniform_P: In [0, 1), one for each position; those of positions that fit are not looked at.
        """
        over = np.flatnonzero(self.counts_P > width)
        if not len(over):
            return self
        weights_E, starts_P = self.weights_E.copy(), self.starts_P
        rows_at_once = max(1, _MAX_BLOCK // int(self.counts_P.max()))
        for first in range(0, len(over), rows_at_once):
            rows_B = over[first : first + rows_at_once]
            slots_M = np.arange(int(self.counts_P[rows_B].max()))
            is_entry = slots_M < self.counts_P[rows_B, None]
            at = np.where(is_entry, starts_P[rows_B, None] + slots_M, 0)
            before_BM = np.where(is_entry, self.weights_E[at], 0.0)
            weights_E[at[is_entry]] = _resampled(before_BM, width, uniform_P[rows_B])[is_entry]
        return type(self)(counts_P=self.counts_P, ids_E=self.ids_E, weights_E=weights_E).without_zeros()

    def table(self, width: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Ids and weights, [P, K] each; free slots have id 0 and weight 0. No position may have more than K entries."""
        assert not len(self.counts_P) or self.counts_P.max() <= width, "reduce the entries first"
        ids = np.zeros((len(self.counts_P), width), dtype=np.int32)
        weights = np.zeros((len(self.counts_P), width), dtype=np.float64)
        rows_E = self.rows_E
        slots_E = np.arange(len(rows_E)) - self.starts_P[rows_E]
        ids[rows_E, slots_E], weights[rows_E, slots_E] = self.ids_E, self.weights_E
        return ids, weights


def _distinct_draws(
    records: Records, tail_mass_P: NDArray[np.float64], tail_counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Draws of one id at one position as one: its id, multiplicity * r / n, and how many there are per position.

    Draws ascend within a position, so equal ones are neighbours.
    """
    rows_N, ids_N = np.repeat(np.arange(len(tail_counts)), tail_counts), records.tail_ids_N.astype(np.int64)
    is_first = np.ones(len(ids_N), dtype=np.bool_)
    is_first[1:] = (ids_N[1:] != ids_N[:-1]) | (rows_N[1:] != rows_N[:-1])
    firsts = np.flatnonzero(is_first)
    multiplicity = np.diff(firsts, append=len(ids_N))
    rows = rows_N[firsts]
    weights = multiplicity * (tail_mass_P[rows] / tail_counts[rows])
    return ids_N[firsts], weights, np.bincount(rows, minlength=len(tail_counts))


def _resampled(weights_BM: NDArray[np.float64], width: int, uniform_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of which at most `width` of a row are not 0, [B, M]; every row has more than that before."""
    order = np.argsort(-weights_BM, axis=1, kind="stable")
    descending = np.take_along_axis(weights_BM, order, axis=1)
    rest = np.cumsum(descending[:, ::-1], axis=1)[:, ::-1]
    # With so many kept, the others share what is left of the slots; the first number that leaves none of them a
    # probability above 1 is the right one. With all slots but one kept, none ever is.
    left = width - np.arange(width)
    kept_B = np.argmax(descending[:, :width] <= rest[:, :width] / left, axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    is_kept = rank < kept_B[:, None]
    cumulative = np.cumsum(np.where(is_kept, 0.0, weights_BM), axis=1)
    draws_B, mass_B = width - kept_B, cumulative[:, -1]
    # Points u, u + 1, ... on a line of as many units as there are draws: how many lie before the end of each entry.
    # From the last entry on all of them do, however the difference is rounded.
    before = np.ceil(cumulative / mass_B[:, None] * draws_B[:, None] - uniform_B[:, None])
    points = np.where(cumulative < mass_B[:, None], before, draws_B[:, None])
    picks = np.diff(points, axis=1, prepend=0.0)
    return np.where(is_kept, weights_BM, picks * (mass_B / draws_B)[:, None])
