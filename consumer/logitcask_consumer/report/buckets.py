"""Where a student differs from its teacher: KL by the teacher's entropy, and by how frequent the realised token is.

Shape legend: P positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.report.estimates import DocumentBootstrap
from logitcask_consumer.report.evaluate import Column, Columns

ENTROPY_BUCKETS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Some positions, by a number that lies between two ends."""

    low: float
    high: float
    positions_K: NDArray[np.int64]
    """Their numbers, ascending."""


def entropy_buckets(entropy_P: Column) -> list[Bucket]:
    """`ENTROPY_BUCKETS` buckets of equally many positions each, by H(t) in nats, both ends included."""
    parts = np.array_split(np.argsort(entropy_P, kind="stable"), ENTROPY_BUCKETS)
    return [
        Bucket(low=float(entropy_P[part].min()), high=float(entropy_P[part].max()), positions_K=np.sort(part))
        for part in parts
        if len(part)
    ]


def frequency_buckets(occurrences_P: Column) -> list[Bucket]:
    """Buckets of tokens that occur 1 to 9 times, 10 to 99 times, and so on; empty ones are left out."""
    buckets, low = [], 1
    while low <= occurrences_P.max():
        positions_K = np.flatnonzero((occurrences_P >= low) & (occurrences_P < 10 * low))
        if len(positions_K):
            buckets.append(Bucket(low=low, high=10 * low - 1, positions_K=positions_K))
        low *= 10
    return buckets


def by_bucket(
    buckets: Sequence[Bucket], teacher: Columns, models: Mapping[str, Columns], metric: str, *, seed: int
) -> list[dict[str, Any]]:
    """A metric's mean in each bucket for each model, with its interval over the documents that the bucket touches.

    Args:
        buckets: of the positions of all columns.
        teacher: the teacher's own figures.
        models: label -> what was measured.
        metric: name of a column of theirs.
        seed: of the bootstrap; the same documents are drawn for every model.

    Returns:
        For each bucket `low`, `high`, `positions`, `documents`, `entropy` (mean H(t)) and `models`: label -> estimate.
    """
    described = []
    for bucket in buckets:
        at_K = bucket.positions_K
        bootstrap = DocumentBootstrap(teacher.documents_P[at_K], seed=seed)
        described.append(
            {
                "low": bucket.low,
                "high": bucket.high,
                "positions": len(at_K),
                "documents": bootstrap.num_documents,
                "entropy": float(teacher.values["entropy"][at_K].mean(dtype=np.float64)),
                "models": {
                    label: bootstrap.mean(columns.values[metric][at_K]).as_dict() for label, columns in models.items()
                },
            }
        )
    return described
