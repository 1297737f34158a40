"""Windows into as few sequences of a fixed number of slots as heuristics find: best fit, and the fullest first.

Shape legend: W windows, B sequences (bins).

Best fit decreasing needs at most 11/9 of the optimal number of sequences (Johnson 1973). It is near the optimum where
there are many short windows, or few sizes; where a sequence holds a few windows of like sizes it leaves the same rest
in most of them. The other heuristic fills one sequence after the other as far as the windows that are left allow, the
largest of them among its windows (minimum bin slack in the form MBS' of Gupta and Ho 1999, Prod. Plan. Control 10,
598). Of the sets of windows that fill a sequence alike it takes one of large windows, which are hard to place later, or
one of small ones, which leaves sizes that go together; neither is better everywhere. The sums that windows can reach
are the bits of one integer, so that a size costs a few shifts (the subset sums of Bellman 1957).
bench/packing_fill.py compares this with lower bounds on real documents.

Windows of equal size are placed together: loops run over sizes and over kinds of sequences, not over windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Beside: TypeAlias = Literal["large", "small"]
_BESIDE: Final[tuple[Beside, ...]] = get_args(Beside)
_NEAR_ENOUGH: Final = 1.01
"""Times the sequences that all slots would fill: from there on a longer search saves less than it costs."""


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

    @classmethod
    def of(cls, sequence_W: NDArray[np.int64], sequences: int) -> Self:
        """From the sequence of each window: windows in the order of their numbers within one."""
        counts_B = np.bincount(sequence_W, minlength=sequences)
        offsets_B1 = np.concatenate([[0], np.cumsum(counts_B)])
        return cls(windows_W=np.argsort(sequence_W, kind="stable"), offsets_B1=offsets_B1)

    def take(self, sequences: Sequence[int]) -> Self:
        """Some of the sequences, in this order; a negative number gives one without windows."""
        chosen = [self[sequence] if sequence >= 0 else self.windows_W[:0] for sequence in sequences]
        return type(self)(
            windows_W=np.concatenate([self.windows_W[:0], *chosen]),
            offsets_B1=np.array(list(accumulate(map(len, chosen), initial=0)), dtype=np.int64),
        )


def pack(slots_W: NDArray[np.int64], *, capacity: int) -> Packs:
    """Assign windows to sequences by the heuristic that needs fewest; by best fit where others could save next to none.

    Args:
        slots_W: slots of each window, 1 to capacity.
        capacity: slots of a sequence.
    """
    best = pack_best_fit(slots_W, capacity=capacity)
    for beside in _BESIDE:
        if len(best) <= _NEAR_ENOUGH * -(-int(slots_W.sum()) // capacity):  # no packing needs fewer than that
            break
        best = min(best, pack_fullest(slots_W, capacity=capacity, beside=beside), key=len)
    return best


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
    return Packs.of(sequence_W, opened)


def pack_fullest(slots_W: NDArray[np.int64], *, capacity: int, beside: Beside) -> Packs:
    """Fill sequences one after the other: the largest window left, with those that together leave the least room.

    Args:
        slots_W: slots of each window, 1 to capacity.
        capacity: slots of a sequence.
        beside: which windows to try first beside the largest.
    """
    order_W = np.argsort(-slots_W, kind="stable")
    negated, first, counts = np.unique(-slots_W[order_W], return_index=True, return_counts=True)
    sizes, left, begun = (-negated).tolist(), counts.tolist(), first.tolist()
    sequence_W = np.empty(len(slots_W), dtype=np.int64)
    opened = 0
    for largest in range(len(sizes)):
        while left[largest]:
            left[largest] -= 1
            places = range(largest, len(sizes))
            times_each = _fullest(sizes, left, places if beside == "large" else places[::-1], capacity - sizes[largest])
            left[largest] += 1
            times_each[largest] = times_each.get(largest, 0) + 1
            # As many sequences of this kind as there are windows for.
            sequences = min(left[place] // times for place, times in times_each.items())
            numbers = np.arange(opened, opened + sequences)
            for place, times in times_each.items():
                stop = begun[place] + sequences * times
                sequence_W[order_W[begun[place] : stop]] = np.repeat(numbers, times)
                begun[place], left[place] = stop, left[place] - sequences * times
            opened += sequences
    return Packs.of(sequence_W, opened)


def _fullest(sizes: list[int], left: list[int], places: range, room: int) -> dict[int, int]:
    """The windows that together leave the least of a room: place of each size in `sizes` -> how many.

    Args:
        sizes: of windows.
        left: how many windows of each size there are.
        places: of the sizes to take, in this order while there is room.
        room: slots.
    """
    reached, within, before = 1, (1 << room + 1) - 1, list[tuple[int, int]]()
    for place in places:
        if reached >> room & 1:
            break
        size, most = sizes[place], min(left[place], room // sizes[place])
        if most < 1:
            continue
        before.append((place, reached))
        times = 1
        while most:  # by doubling: any number up to `most` is a sum of these
            times = min(times, most)
            reached |= (reached << size * times) & within
            most -= times
            times *= 2
    total, times_each = reached.bit_length() - 1, dict[int, int]()
    for place, without in reversed(before):
        while not without >> total & 1:
            total -= sizes[place]
            times_each[place] = times_each.get(place, 0) + 1
    return times_each
