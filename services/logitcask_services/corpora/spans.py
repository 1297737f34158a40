"""Spans [start, stop) of a text: which of many meet a place in it, and which tokens hold them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

Span = tuple[int, int]


class Spans:
    """Spans in any order, nested or not; a search does not look at each of them."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = sorted(spans)
        self._starts = [start for start, _ in self._spans]
        self._farthest = list(accumulate((stop for _, stop in self._spans), max))
        """Where the spans up to each of them end at the latest."""

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


def token_ranges(offsets: Sequence[Span], ranges: Sequence[Span]) -> list[Span]:
    """Tokens that hold any character of each range; touching ranges are joined.

    Args:
        offsets: characters [start, stop) of each token, ascending.
        ranges: character ranges [start, stop), ascending and disjoint.
    """
    starts, stops = [start for start, _ in offsets], [max(stop, start + 1) for start, stop in offsets]
    spans = list[Span]()
    for start, stop in ranges:
        first, last = bisect_right(stops, start), bisect_left(starts, stop)
        if first >= last:
            continue
        if spans and first <= spans[-1][1]:
            spans[-1] = (spans[-1][0], last)
        else:
            spans.append((first, last))
    return spans
