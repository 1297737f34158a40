"""Packing windows into sequences of a fixed number of slots: best fit, decreasing.

Shape legend: W windows, B sequences (bins).

Best fit decreasing needs at most 11/9 of the optimal number of sequences (Johnson 1973), and with many short documents
leaves few slots empty. Windows of equal size are placed together, so the loop runs over sizes, not windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.data.windows import Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Packs:
    """B sequences as a ragged list of windows."""

    windows_W: NDArray[np.int64]
    """Window numbers, sequence after sequence."""
    offsets_B1: NDArray[np.int64]
    """B + 1 offsets into `windows_W`."""

    def __len__(self) -> int:
        return len(self.offsets_B1) - 1

    def __getitem__(self, sequence: int) -> NDArray[np.int64]:
        """Window numbers of one sequence."""
        return self.windows_W[self.offsets_B1[sequence] : self.offsets_B1[sequence + 1]]

    def take(self, sequences: Sequence[int]) -> Self:
        """Some of the sequences, in this order; a negative number gives one without windows."""
        chosen = [self[sequence] if sequence >= 0 else self.windows_W[:0] for sequence in sequences]
        return type(self)(
            windows_W=np.concatenate([self.windows_W[:0], *chosen]),
            offsets_B1=np.array(list(accumulate(map(len, chosen), initial=0)), dtype=np.int64),
        )


def pack_best_fit(slots_W: NDArray[np.int64], *, capacity: int) -> Packs:
    """Assign each window to the fullest sequence that still has room for it, largest windows first.

    Args:
        slots_W: slots of each window, 1 to capacity.
        capacity: slots of a sequence.
    """
    assert not len(slots_W) or (slots_W.min() >= 1 and slots_W.max() <= capacity)
    order_W = np.argsort(-slots_W, kind="stable")
    sizes, first = np.unique(-slots_W[order_W], return_index=True)
    sequence_W = np.empty(len(slots_W), dtype=np.int64)
    # rooms[c]: groups of sequences with c slots left.
    rooms: list[list[NDArray[np.int64]]] = [[] for _ in range(capacity + 1)]
    opened = 0
    for size, start, stop in zip((-sizes).tolist(), first, np.append(first, len(slots_W))[1:], strict=True):
        waiting, left = order_W[start:stop], size
        while len(waiting):
            while left < capacity and not rooms[left]:
                left += 1
            # One after the other, windows of one size would fill a sequence before they look at the next.
            each = left // size
            needed = -(-len(waiting) // each)
            if rooms[left]:
                group = rooms[left].pop()
                if len(group) > needed:
                    rooms[left].append(group[needed:])
            else:
                group = np.arange(opened, opened + needed)
                opened += needed
            group = group[:needed]
            placed = min(len(group) * each, len(waiting))
            sequence_W[waiting[:placed]] = np.repeat(group, each)[:placed]
            waiting = waiting[placed:]
            full, rest = divmod(placed, each)
            rooms[left - each * size].append(group[:full])
            if rest:
                rooms[left - rest * size].append(group[full:])
    return _grouped(sequence_W, opened)


def pack_alone(windows: int) -> Packs:
    """One window per sequence, for students that cannot keep packed documents apart."""
    return Packs(windows_W=np.arange(windows), offsets_B1=np.arange(windows + 1))


def _grouped(sequence_W: NDArray[np.int64], sequences: int) -> Packs:
    """Windows by sequence, in the order of their numbers within one."""
    counts_B = np.bincount(sequence_W, minlength=sequences)
    return Packs(windows_W=np.argsort(sequence_W, kind="stable"), offsets_B1=np.concatenate([[0], np.cumsum(counts_B)]))


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
        packs = pack_best_fit(slots_W[shuffled], capacity=seq_len) if best else pack_alone(len(shuffled))
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
