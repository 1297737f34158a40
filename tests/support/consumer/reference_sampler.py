"""A slow, obvious sampler in float64 numpy that turns dense teacher distributions into records.

Written from the definition of the record, one position after the other, to test the trainer without the capture code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from logitcask_consumer.losses import SparseTarget
from logitcask_consumer.report.bounds import HeadRule


@dataclass
class DensePositions:
    """Dense distributions t [R, V] and realised next tokens y [R]."""

    probs_RV: np.ndarray
    next_ids_R: np.ndarray

    @property
    def entropy_R(self) -> np.ndarray:
        entropy_R: np.ndarray = -(self.probs_RV * np.log(np.maximum(self.probs_RV, 1e-300))).sum(1)
        return entropy_R


@dataclass
class SampledColumns:
    """Columns of a record over R positions, ragged."""

    head_ids: list[np.ndarray]
    head_probs: list[np.ndarray]
    tail_ids: list[np.ndarray]
    tail_mass: list[float]
    tail_probs: list[np.ndarray]


def random_positions(rows: int, vocab: int, *, seed: int = 0, sharpness: float = 2.0) -> DensePositions:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, vocab)) * sharpness
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    next_ids = np.array([rng.choice(vocab, p=p) for p in probs])
    return DensePositions(probs, next_ids)


def sample(
    dense: DensePositions,
    u_R: np.ndarray,
    *,
    mode: str = "threshold",
    tau: float = 0.05,
    head_max: int = 64,
    tail_max: int = 32,
    k: int = 8,
    draws: int = 8,
) -> SampledColumns:
    """Record every position of `dense`, position i with the uniform u_R[i]."""
    out = SampledColumns([], [], [], [], [])
    for probs, y, u in zip(dense.probs_RV, dense.next_ids_R, u_R, strict=True):
        order = np.argsort(-probs, kind="stable")
        if mode == "threshold":
            head = [j for j in order[:head_max] if probs[j] >= tau] or [order[0]]
        elif mode == "topk":
            head = list(order[:k])
        else:
            head = []
        if y not in head:
            head.append(y)
        tail = probs.copy()
        tail[head] = 0.0
        r = tail.sum()
        n = {"threshold": min(int(np.ceil(r / tau)), tail_max), "topk": 0, "sampled": draws}[mode] if r >= 1e-6 else 0
        points = (u + np.arange(n)) * (r / n) if n else np.zeros(0)
        cumulative = np.cumsum(tail)
        drawn = np.searchsorted(cumulative, points, side="right")
        last = np.flatnonzero(tail)[-1] if r > 0 else 0
        out.head_ids.append(np.array(head))
        out.head_probs.append(probs[head])
        out.tail_ids.append(np.minimum(drawn, last))
        out.tail_probs.append(probs[np.minimum(drawn, last)])
        out.tail_mass.append(r)
    return out


def head_rule(*, mode: str = "threshold", tau: float = 0.05, head_max: int = 64, k: int = 8, **_: Any) -> HeadRule:
    """How `sample` chooses heads, with values that were not rounded."""
    limit, least = {"threshold": (head_max, tau), "topk": (k, 0.0), "sampled": (0, 1.0)}[mode]
    return HeadRule(limit=limit, least=least, systematic=mode != "topk", rounding=(1e-12, 1e-12))


def every_outcome(dense: DensePositions, **capture: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All records that u in [0, 1) can give, each with the length of its interval: an exact mean over u, no grid.

    A draw moves to the next token where (u + i) r / n crosses the cumulative tail mass, so between the sorted
    fractional parts of cumulative · n / r nothing changes. Returns (row of each outcome, its u, its weight).
    """
    columns = sample(dense, np.zeros(len(dense.next_ids_R)), **capture)
    rows, middles, weights = [], [], []
    for row, probs in enumerate(dense.probs_RV):
        tail, n = probs.copy(), len(columns.tail_ids[row])
        tail[columns.head_ids[row]] = 0.0
        crossings = np.cumsum(tail) * n / columns.tail_mass[row] % 1.0 if n else np.zeros(0)
        edges = np.unique(np.concatenate([[0.0, 1.0], crossings]))
        rows.append(np.full(len(edges) - 1, row))
        middles.append((edges[1:] + edges[:-1]) / 2)
        weights.append(np.diff(edges))
    return np.concatenate(rows), np.concatenate(middles), np.concatenate(weights)


def offsets(lists: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)


def to_target(
    columns: SampledColumns,
    next_ids_R: np.ndarray,
    *,
    sampled_tail: bool = True,
    dtype: torch.dtype = torch.float64,
    codec: type[np.floating[Any]] = np.float64,
    documents: np.ndarray | None = None,
    log_z_R: np.ndarray | None = None,
) -> SparseTarget:
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.concatenate(columns.head_probs)).astype(codec)
        log_r = np.log(np.array(columns.tail_mass)).astype(codec)
    tail_ids = np.concatenate(columns.tail_ids).astype(np.int64)
    return SparseTarget.from_columns(
        head_ids_H=torch.from_numpy(np.concatenate(columns.head_ids).astype(np.int64)),
        head_logprobs_H=torch.from_numpy(logprobs),
        head_offsets_R1=offsets(columns.head_ids),
        tail_ids_N=torch.from_numpy(tail_ids),
        tail_offsets_R1=offsets(columns.tail_ids),
        log_tail_mass_R=torch.from_numpy(log_r),
        next_ids_R=torch.from_numpy(next_ids_R),
        sampled_tail=sampled_tail,
        documents_R=None if documents is None else torch.from_numpy(documents),
        policy_R4=policy_columns(len(next_ids_R)),
        log_z_R=None if log_z_R is None else torch.from_numpy(log_z_R),
        tail_logprobs_N=torch.from_numpy(np.log(np.concatenate(columns.tail_probs)).astype(codec)),
        dtype=dtype,
    )


def policy_columns(rows: int) -> torch.Tensor:
    """What texts of a student have besides, made up so that nothing is clipped and no terms cancel, [R, 4]."""
    rng = np.random.default_rng(rows)
    later = rng.integers(0, 4, rows)
    columns = [-rng.exponential(0.05, rows), later * rng.exponential(size=rows), later, np.ones(rows)]
    return torch.from_numpy(np.stack(columns, 1))


def dense_kl(logits_RV: torch.Tensor, probs_RV: np.ndarray) -> torch.Tensor:
    """Sum over rows of KL(t || softmax(logits)), float64, differentiable."""
    t = torch.from_numpy(probs_RV)
    return torch.nn.functional.kl_div(torch.log_softmax(logits_RV, -1), t, reduction="sum")


def total_mass(target: SparseTarget) -> torch.Tensor:
    """Sum of t̂ over head and draws, [R]."""
    return target.head_sum(target.head_weights_H) + target.tail_sum(target.tail_weights_N)
