"""What a record says of the teacher's probability and rank of a token, also of one that it does not hold: two bounds.

Shape legend: R rows, H head entries, N tail draws, V vocabulary size.

A head is chosen by a rule, so what it lacks is known to be small: in mode `threshold` below tau (or, where `head_max`
cut the head, not above its last chosen entry), in mode `topk` not above the k-th. Systematic draws lie at equal
distances r/n on the tail's cumulative mass, so a token that was drawn c times has more than (c - 1) r/n and less than
(c + 1) r/n.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.losses import SparseTarget
from logitcask_schemas.record.capture_spec import CaptureSpec

FIRST = 5
"""Of `top5_agreement`."""
_ROUNDING = {"f32": (1e-4, 1e-4), "f16": (0.01, 0.01), "u8": (0.15, 0.65), "u8all": (0.15, 0.65)}
"""By codec, more than the relative error of a stored probability, above `_FINE` and below it (docs/format.md)."""
_DIGITS = {"f32": 2.0**-24, "f16": 2.0**-11}
"""By codec, the relative error of a stored logarithm, which is rounded to the nearest."""
_STEPS = ((-1.9, 1 / 64), (-3.9, 1 / 32), (-7.7, 1 / 8))
"""Logarithms above which the levels of `u8` lie so far apart, a little above its own borders; else 1/2."""
_FINE = 1.15 * math.exp(-8.0)
"""Stored probability above which the steps of the codec u8 are the small ones: those below are of half a nat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRule:
    """How the heads of a cask were chosen, as far as it bounds what they lack."""

    limit: int
    """The front of a head, at most so many entries, are the likeliest tokens in order; 0 where that is unknown."""
    least: float
    """A head with fewer chosen entries than `limit` holds every token of at least this probability."""
    systematic: bool
    """Whether draws lie at equal distances."""
    rounding: tuple[float, float]
    """Relative error of stored probabilities: of large ones, of those that a codec stores in coarser steps."""
    codec: str | None = None
    """How they are stored; None: not rounded at all."""

    @classmethod
    def of(cls, capture: CaptureSpec) -> Self:
        """The rule of a capture spec."""
        limit, least = {
            "threshold": (capture.head_max, capture.tau),
            "topk": (capture.k, 0.0),  # a head of fewer is the whole vocabulary
            "sampled": (0, 1.0),
        }[capture.mode]
        systematic = capture.mode != "topk" and capture.sampler == "systematic"
        return cls(
            limit=limit,
            least=least,
            systematic=systematic,
            rounding=_ROUNDING[capture.logprob_codec],
            codec=capture.logprob_codec,
        )

    def most(self, stored: Tensor) -> Tensor:
        """The most that probabilities can be which are stored as these."""
        fine, coarse = self.rounding
        return stored * torch.where(stored > _FINE, 1.0 + fine, 1.0 + coarse)


def acceptance_doubt(target: SparseTarget, rule: HeadRule) -> Tensor:
    """By how much rounding may move the bounds of sum_j min(t_j, p_j), on average over what is drawn for it, [R].

    The sum over the head of min(t, p) is off by less than the sum of |stored t - t|, and never more than half of that
    in one direction where the rounding is unbiased. The head is then scaled to 1 - r: that moves it by as much once
    more, and by the rounding of r, which the tail's bound has too.
    """
    tail_codec = {"u8": "f16", "u8all": "u8"}.get(rule.codec or "", rule.codec)
    head_R = target.head_sum(_rounding(target.head_weights_H, rule.codec))
    return 2.0 * (head_R + _rounding(target.tail_mass_R, tail_codec))


def _rounding(stored: Tensor, codec: str | None) -> Tensor:
    """The most that the mean error of probabilities in one direction can be which are stored as these."""
    if codec is None:
        return torch.zeros_like(stored)
    log = stored.clamp(min=torch.finfo(stored.dtype).tiny).log()
    if codec in _DIGITS:
        return stored * log.abs() * _DIGITS[codec]
    step = torch.full_like(stored, 0.5)
    for least, width in reversed(_STEPS):
        step = torch.where(log > least, width, step)
    # Between two levels at random, unbiased: the mean of what it is above, or below, is at most a quarter of their gap.
    return stored * torch.expm1(step) / 4.0


def outside_bound(target: SparseTarget, rule: HeadRule) -> Tensor:
    """The most that t of any token outside the head can be, [R]; never above the tail's mass."""
    if not rule.limit:
        return target.tail_mass_R
    counts_R = np.diff(target.head_offsets_R1)
    last_R = target.head_offsets_R1[:-1] + np.minimum(counts_R, rule.limit) - 1
    # The entry at the limit may be the next token or a pinned one, below the threshold, which then is the bound.
    last_t_R = rule.most(target.head_weights_H[_at(last_R, target)])
    full_R = _at(counts_R >= rule.limit, target)
    least_R = torch.full_like(target.tail_mass_R, rule.least)
    return torch.minimum(torch.where(full_R, last_t_R.clamp(min=rule.least), least_R), target.tail_mass_R)


def probability_bounds(
    target: SparseTarget, ids_R: Tensor, rule: HeadRule, tail_logprobs_N: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Between what t of one token of each row lies, [R] each; both are t where the record holds it.

    Args:
        target: R rows.
        ids_R: int64 ids.
        rule: how the heads were chosen.
        tail_logprobs_N: log t of the draws, where the records have them.
    """
    in_head_H = target.head_ids_H == ids_R[target.head_rows_H]
    drawn_N = (target.tail_ids_N == ids_R[target.tail_rows_N]).to(target.tail_weights_N.dtype)
    held_R = target.head_sum(in_head_H.to(target.head_weights_H.dtype)) > 0
    head_t_R = target.head_sum(target.head_weights_H * in_head_H)
    low_R, high_R = torch.zeros_like(head_t_R), outside_bound(target, rule)
    times_R = target.tail_sum(drawn_N)
    if rule.systematic:
        counts_R = _at(np.diff(target.tail_offsets_R1), target).to(head_t_R.dtype)
        share_R = target.tail_mass_R / counts_R.clamp(min=1.0)
        low_R = ((times_R - 1.0) * share_R).clamp(min=0.0)
        high_R = torch.where(counts_R > 0, torch.minimum(high_R, (times_R + 1.0) * share_R), high_R)
    if tail_logprobs_N is not None:  # equal for all draws of a token
        drawn_t_R = target.tail_sum(drawn_N * tail_logprobs_N.to(drawn_N.dtype).exp()) / times_R.clamp(min=1.0)
        low_R, high_R = torch.where(times_R > 0, drawn_t_R, low_R), torch.where(times_R > 0, drawn_t_R, high_R)
    high_R = torch.maximum(low_R, high_R)  # rounding of stored values may have crossed them
    return torch.where(held_R, head_t_R, low_R), torch.where(held_R, head_t_R, high_R)


def acceptance_bound(outside_p_RV: Tensor, accepted_R: Tensor, target: SparseTarget, rule: HeadRule) -> Tensor:
    """The most that sum_j min(t_j, p_j) can be, [R]: no token outside the head has more than `outside_bound`.

    Args:
        outside_p_RV: the student's probabilities, 0 on the head; overwritten.
        accepted_R: the sum over the head.
        target: R rows.
        rule: how the heads were chosen.
    """
    most_R = outside_bound(target, rule)
    outside_R = torch.minimum(outside_p_RV, most_R.to(outside_p_RV.dtype)[:, None], out=outside_p_RV).sum(-1)
    return accepted_R + torch.minimum(target.tail_mass_R, outside_R.to(accepted_R.dtype))


def among_first(target: SparseTarget, ids_R: Tensor, rule: HeadRule) -> tuple[Tensor, Tensor]:
    """Whether one token of each row is among the teacher's `FIRST` likeliest: 0 or 1 twice, or 0 and 1 if unknown, [R].

    A head of fewer entries than `FIRST` does not say which tokens follow.
    """
    counts_R = np.diff(target.head_offsets_R1)
    # A smaller one may be stored as up to so much.
    surely_chosen = float(rule.most(torch.tensor(rule.least, dtype=torch.float64)))
    known_R = torch.zeros_like(target.tail_mass_R)
    among_R = torch.zeros_like(target.tail_mass_R)
    for place in range(min(FIRST, rule.limit)):
        has_R = _at(counts_R > place, target)
        at_R = _at(np.minimum(target.head_offsets_R1[:-1] + place, target.head_offsets_R1[1:] - 1), target)
        # What follows the chosen entries (next token, pinned ids) is below the threshold; the first entry never is one.
        chosen_R = has_R & (target.head_weights_H[at_R] > surely_chosen) if place else has_R
        known_R += chosen_R
        among_R += chosen_R & (target.head_ids_H[at_R] == ids_R)
    return among_R, torch.where(known_R >= FIRST, among_R, torch.ones_like(among_R))


def _at(values_R: NDArray[Any], target: SparseTarget) -> Tensor:
    return torch.from_numpy(values_R).to(target.tail_mass_R.device)
