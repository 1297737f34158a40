"""What becomes of a document longer than the limit: truncate, split or skip, as the extraction states."""

from collections.abc import Sequence
from typing import Literal

from logitcask_services.corpora.lines import LineProblem

Overflow = Literal["truncate", "split", "skip"]
MIN_LENGTH = 4
"""Smallest limit: what `split` needs so that every piece has at least two tokens."""


def fit(token_ids: list[int], limit: int, policy: Overflow) -> list[list[int]]:
    """Pieces of at most `limit` tokens (at least MIN_LENGTH) and at least 2.

    truncate keeps the first `limit` tokens; split cuts end to end, every token once, and shortens the last piece but
    one where a single token would remain; skip raises LineProblem `too_long`.
    """
    total = len(token_ids)
    if total <= limit:
        return [token_ids]
    if policy == "truncate":
        return [token_ids[:limit]]
    if policy == "skip":
        raise LineProblem(
            "too_long",
            f"the document has {total} tokens, the limit is {limit}; it was skipped as asked "
            "(overflow: truncate or split would keep it)",
        )
    starts = list(range(0, total, limit))
    if total - starts[-1] == 1:
        starts[-1] -= 1
    return [token_ids[start:stop] for start, stop in zip(starts, [*starts[1:], total], strict=True)]


def cut_answers(answers: Sequence[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """The parts of a document's ranges that lie in its piece [start, stop), counted from the piece's start."""
    inside = ((max(first, start), min(last, stop)) for first, last in answers)
    return [(first - start, last - start) for first, last in inside if first < last]
