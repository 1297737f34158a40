"""How the windows of a corpus become sequences: several to a sequence, or each alone.

Shape legend: W windows, B sequences, G groups of shards.
"""

from itertools import pairwise
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data.bin_packing import Packs, pack
from logitcask_consumer.data.windows import Windows


def pack_alone(windows: int) -> Packs:
    """One window per sequence, for students that cannot keep packed documents apart."""
    return Packs(windows_W=np.arange(windows), offsets_B1=np.arange(windows + 1))


Packing = Literal["best_fit", "none"]

GROUP_SEQUENCES: Final = 256
"""Shards are packed together until they fill this many sequences: a shard of a few documents alone would pack badly."""


def pack_groups(
    windows: Windows, documents_per_shard: NDArray[np.int64], seq_len: int, packing: Packing, seed: int
) -> tuple[Packs, NDArray[np.int64]]:
    """Pack the windows of a corpus.

    Args:
        windows: of all documents, in the order of the shards.
        documents_per_shard: how many documents each shard has.
        seq_len: slots of a sequence.
        packing: `best_fit`, or `none` for one window per sequence.
        seed: of the order in which windows of equal length are packed.

    Returns:
        The sequences, and how many of them each group has, [G].
    """
    generator = np.random.default_rng([seed, 1])
    slots_W, numbers, lengths, counts = windows.slots_W, [], [], []
    for first, stop in pairwise(_group_edges(windows, documents_per_shard, GROUP_SEQUENCES * seq_len)):
        shuffled = generator.permutation(np.arange(first, stop))
        best = packing == "best_fit"
        packs = pack(slots_W[shuffled], capacity=seq_len) if best else pack_alone(len(shuffled))
        numbers.append(shuffled[packs.windows_W])
        lengths.append(np.diff(packs.offsets_B1))
        counts.append(len(packs))
    offsets_B1 = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Packs(windows_W=np.concatenate(numbers), offsets_B1=offsets_B1), np.array(counts, dtype=np.int64)


def _group_edges(windows: Windows, documents_per_shard: NDArray[np.int64], enough_slots: int) -> list[int]:
    """Window numbers at which groups of consecutive shards begin and end; a group has enough slots to pack well."""
    shard_edges = np.searchsorted(windows.document_W, np.concatenate([[0], np.cumsum(documents_per_shard)]))
    slots_before = np.concatenate([[0], np.cumsum(windows.slots_W)])
    edges = [0]
    for edge in shard_edges[1:].tolist():
        if slots_before[edge] - slots_before[edges[-1]] >= enough_slots:
            edges.append(edge)
    if edges[-1] != len(windows):
        edges.append(len(windows))
    return edges
