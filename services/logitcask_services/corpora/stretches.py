"""Which of many stretches [start, stop) of a text meet a place in it, without looking at each of them."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

Span = tuple[int, int]


class Stretches:
    """Stretches in any order, nested or not."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = sorted(spans)
        self._starts = [start for start, _ in self._spans]
        self._farthest = list(accumulate((stop for _, stop in self._spans), max))
        """Where the stretches up to each one end at the latest."""

    def meeting(self, start: int, stop: int) -> Iterator[Span]:
        """Those that share a character with [start, stop), the last one first."""
        at = bisect_left(self._starts, stop) - 1
        while at >= 0 and self._farthest[at] > start:
            if self._spans[at][1] > start:
                yield self._spans[at]
            at -= 1

    def meets(self, start: int, stop: int) -> bool:
        """Whether any shares a character with [start, stop)."""
        return next(self.meeting(start, stop), None) is not None
