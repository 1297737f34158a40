"""How many positions of a dataset its weights leave to be trained, found out before the first step.

A run in which no position has a weight would finish without an error, having changed the student by weight decay alone.
"""

from itertools import islice
from typing import Final

import numpy as np

from logitcask_consumer.data.dataset import CaskDataset, TrainedShare
from logitcask_consumer.data.sampler import ShardBlockSampler
from logitcask_consumer.weights import StoredAnswers
from logitcask_schemas.errors import LogitcaskError

ENOUGH_POSITIONS: Final = 1 << 17
"""Looked at, as soon as one of them has a weight."""
LOW_SHARE: Final = 0.01
"""A smaller share of trained positions is worth a warning."""
_SEQUENCES_AT_ONCE: Final = 16


class NothingTrainedError(LogitcaskError, ValueError):
    """No position of the documents has a weight."""


def trained_share(dataset: CaskDataset, *, seed: int, enough: int = ENOUGH_POSITIONS) -> TrainedShare:
    """Look at positions in the order of the run's first epoch, until there are enough and one has a weight; once.

    Args:
        dataset: with its weights, bound.
        seed: of the run's order, so that shards of an object store are fetched that training needs first.
        enough: positions to look at.

    Raises:
        NothingTrainedError: none of all positions has a weight; says why.
        CaskCorruptionError, CaskNotFoundError: as `CaskDataset.read`.
    """
    weights = dataset.weights
    if dataset.share is not None:
        return dataset.share
    if not weights.factors:
        return TrainedShare(positions=dataset.num_positions, trained=dataset.num_positions, whole=True)
    answers = StoredAnswers.of(dataset.casks)
    positions, trained = 0, 0
    by_factor = np.zeros(len(weights.factors), dtype=np.int64)
    if impossible := [weight for weight in weights.factors if weight.never(answers)]:
        raise _nothing(dataset, [weight.why_nothing(answers) for weight in impossible])
    order = iter(ShardBlockSampler(dataset.sources, seed=seed))
    while sequences := list(islice(order, _SEQUENCES_AT_ONCE)):
        read = dataset.positions(sequences)
        positions += read.records.num_positions
        factors = [np.asarray(weight.of(read)) > 0 for weight in weights.factors]
        by_factor += [int(np.count_nonzero(factor)) for factor in factors]
        trained += int(np.count_nonzero(np.logical_and.reduce(factors)))
        if trained and positions >= enough:
            break
    if not trained:
        zero = [weight for weight, count in zip(weights.factors, by_factor.tolist(), strict=True) if not count]
        raise _nothing(dataset, [weight.why_nothing(answers) for weight in zero])
    dataset.share = TrainedShare(positions=positions, trained=trained, whole=positions == dataset.num_positions)
    return dataset.share


def _nothing(dataset: CaskDataset, reasons: list[str]) -> NothingTrainedError:
    casks = ", ".join(str(cask.path) for cask in dataset.casks)
    why = "; ".join(reasons) or "where one of the weights is above 0, another is 0"
    return NothingTrainedError(
        f"nothing to train: no position of the {dataset.num_documents:,} documents in {casks} has a weight with "
        f"weights {dataset.weights.spec!r}: {why}"
    )


def share_note(looked_at: TrainedShare) -> str | None:
    """A sentence for people about a share, None where it is not worth one."""
    if looked_at.share >= LOW_SHARE:
        return None
    part = "" if looked_at.whole else f" of the first {looked_at.positions:,}"
    return (
        f"warning: the weights leave {looked_at.trained:,} positions{part} to be trained, {looked_at.share:.2%}; "
        "most of the run's work is wasted. Are they the right ones?"
    )
