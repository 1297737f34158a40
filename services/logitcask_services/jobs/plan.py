"""The plan of an extraction: which consecutive documents form a chunk. A function of the token store alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARE, SMALLEST, LARGEST = 64, 4096, 8 << 20
"""A chunk is 1/64 of the corpus, within bounds in positions: a crash costs at most about that much capture, a chunk's
fixed cost (about 10 ms of CPU, five flushes) stays small beside it, and a trillion tokens stay near a hundred thousand
shards."""
MOST_DOCUMENTS = 4096
"""A document that waits for its shard takes some 2 kB beside its records: chunks of short ones are bounded, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Documents first_document .. first_document + documents - 1."""

    number: int
    first_document: int
    documents: int
    tokens: int
    deaths: int = 0


def chunk_budget(positions: int) -> int:
    """Positions per chunk for a corpus of that many."""
    return min(max(positions // SHARE, SMALLEST), LARGEST)


def plan_chunks(offsets_D1: NDArray[np.uint64], budget: int | None = None) -> Iterator[Chunk]:
    """Chunks of at most `budget` positions and MOST_DOCUMENTS documents (one at least), in corpus order, over all.

    offsets_D1: [D + 1] document offsets in tokens; a document of L tokens has L - 1 positions.
    """
    documents = len(offsets_D1) - 1
    limit = chunk_budget(int(offsets_D1[-1]) - documents) if budget is None else budget
    first = number = 0
    while first < documents:
        window = offsets_D1[first : first + MOST_DOCUMENTS + 1].astype(np.int64)
        positions = window - window[0] - np.arange(len(window))
        stop = first + max(int(np.searchsorted(positions, limit, side="right")) - 1, 1)
        yield Chunk(
            number=number,
            first_document=first,
            documents=stop - first,
            tokens=int(offsets_D1[stop]) - int(offsets_D1[first]),
        )
        first, number = stop, number + 1
