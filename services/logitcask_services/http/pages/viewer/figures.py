"""What a cask's records say as a whole: mass that the k largest hold, entropies, bytes per token. From a sample.

The sample is whole documents, evenly spread over the cask, so the same cask gives the same figures; of a cask in an
object store, over its first shard.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.object_store import is_url
from logitcask_schemas.record.records import Records

SAMPLE_POSITIONS: Final = 20_000
SAMPLE_DOCUMENTS: Final = 200
KS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)
BIN_NATS: Final = 0.25


class MassAtK(BaseModel):
    """Probability that the k largest stored tokens hold together, over the sampled positions.

    Beyond the number that a position's head stores, what the head holds: at least that much.
    """

    k: int
    mean: float
    median: float
    p5: float
    """The twentieth part of positions that are worst have this much or less."""


class EntropyBin(BaseModel):
    """Sampled positions whose entropy is in [low, high) nats; the last bin holds all above, too."""

    low: float
    high: float
    positions: int


class ShardBytes(BaseModel):
    """A shard."""

    name: str
    tokens: int
    bytes: int
    bytes_per_token: float


class CaskFigures(BaseModel):
    """Figures of a cask."""

    documents: int
    tokens: int
    positions: int
    bytes: int
    bytes_per_token: float | None
    """None of an empty cask."""
    entries_per_position: float | None
    draws_per_position: float | None
    sampled_documents: int
    sampled_positions: int
    entropy_is_bound: bool
    """Whether entropies are lower bounds."""
    mean_entropy: float | None
    mass_at_k: list[MassAtK]
    entropy_bins: list[EntropyBin]
    shards: list[ShardBytes]


def cask_figures(cask: Cask) -> CaskFigures:
    """Figures of a cask. Raises what `Cask.read` raises."""
    sampled = _sample(cask)
    entropy_P = np.concatenate([np.empty(0), *(each.entropy_P.astype(np.float64) for each in sampled)])
    heads = [_sorted_head_mass(each) for each in sampled]
    mass_PK = np.concatenate([np.empty((0, len(KS))), *heads])
    tokens, positions = cask.num_tokens, cask.num_positions
    return CaskFigures(
        documents=len(cask),
        tokens=tokens,
        positions=positions,
        bytes=cask.num_bytes,
        bytes_per_token=cask.num_bytes / tokens if tokens else None,
        entries_per_position=sum(entry.head_entries for entry in cask.entries) / positions if positions else None,
        draws_per_position=sum(entry.tail_entries for entry in cask.entries) / positions if positions else None,
        sampled_documents=len(sampled),
        sampled_positions=len(entropy_P),
        entropy_is_bound=cask.manifest.capture.entropy_is_bound,
        mean_entropy=float(entropy_P.mean()) if len(entropy_P) else None,
        mass_at_k=_mass_at_k(mass_PK, max((int(each.head_counts_P.max(initial=0)) for each in sampled), default=0)),
        entropy_bins=_bins(entropy_P),
        shards=[
            ShardBytes(
                name=entry.name,
                tokens=entry.tokens,
                bytes=entry.bytes,
                bytes_per_token=entry.bytes / max(entry.tokens, 1),
            )
            for entry in cask.entries
        ],
    )


def _sample(cask: Cask) -> list[Records]:
    """Records of documents evenly spread, up to the limits of positions and documents; at least one document."""
    # Of a cask in a store, from its first shard: to open another one is to fetch all of it.
    total = cask.entries[0].documents if cask.entries and is_url(cask.place) else len(cask)
    numbers = np.unique(np.linspace(0, total - 1, min(total, SAMPLE_DOCUMENTS)).round().astype(int))
    sampled: list[Records] = []
    positions = 0
    # In an order that keeps them spread when the limit of positions ends it early.
    for number in np.random.default_rng(0).permutation(numbers).tolist():
        sampled.append(cask.read(number).records)
        positions += sampled[-1].num_positions
        if positions >= SAMPLE_POSITIONS:
            break
    return sampled


def _sorted_head_mass(records: Records) -> NDArray[np.float64]:
    """Mass of the k largest stored tokens of each position, for each of KS, [P, K]."""
    counts_P = records.head_counts_P.astype(np.int64)
    widest = int(counts_P.max(initial=0))
    position_H = np.repeat(np.arange(len(counts_P)), counts_P)
    place_H = np.arange(len(position_H)) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)
    grid_PW = np.zeros((len(counts_P), widest))
    grid_PW[position_H, place_H] = np.exp(records.head_logprobs_H.astype(np.float64))
    # The token that came stands behind the others where it is not among the largest.
    sums_PW = np.cumsum(-np.sort(-grid_PW, axis=1), axis=1)
    return np.stack([sums_PW[:, min(k, widest) - 1] for k in KS], axis=1) if widest else np.zeros((len(counts_P), 0))


def _mass_at_k(mass_PK: NDArray[np.float64], widest: int) -> list[MassAtK]:
    if not len(mass_PK):
        return []
    kept = [place for place in range(len(KS)) if place == 0 or KS[place - 1] < widest]
    p5_K, median_K = np.percentile(mass_PK, [5, 50], axis=0)
    means_K = mass_PK.mean(axis=0)
    return [MassAtK(k=KS[at], mean=float(means_K[at]), median=float(median_K[at]), p5=float(p5_K[at])) for at in kept]


def _bins(entropy_P: NDArray[np.float64]) -> list[EntropyBin]:
    if not len(entropy_P):
        return []
    number = int(max(entropy_P.max(), 0) // BIN_NATS) + 1
    edges = np.arange(number + 1) * BIN_NATS
    counts, _ = np.histogram(np.clip(entropy_P, 0, None), bins=edges)
    return [
        EntropyBin(low=float(low), high=float(high), positions=int(count))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
