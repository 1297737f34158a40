"""What the teacher said of aligned chunks, over the rows of a batch.

Shape legend: R rows (student positions, each predicts the student's next token), C chunks, P pairs, K most likely
teacher tokens of a pair.

Rows follow each other as in the text, window after window. A chunk is a run of rows; chunks do not overlap. A pair is a
row at which teacher and student have read the same bytes, so that both distributions are over what comes next.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTarget:
    """The target of R rows. What decides on cuts stays on the host."""

    next_ids_R: Tensor
    """int64 realised next token of the student."""
    counted_R: Tensor
    """bool: whether the row's cross-entropy counts; rows that only complete a chunk of an earlier window do not."""
    chunk_of_R: Tensor
    """int64 chunk of each row; C where it is in none."""
    chunk_starts_C: NDArray[np.int64]
    chunk_stops_C: NDArray[np.int64]
    """First row, and one past the last row, ascending."""
    closing_rows_C: Tensor
    """int64 row after the chunk, which predicts what follows it; 0 where `closes_C` is false."""
    closes_C: Tensor
    """bool: whether that row is in the batch and in the same window."""
    teacher_logprobs_C: Tensor
    """Log-likelihood of the chunk's bytes by the teacher's tokens, nats."""
    closing_logmass_C: Tensor
    """Log of the teacher's mass, after the chunk, on tokens that begin a new word; 0 where `closes_C` is false."""
    pair_rows_P: Tensor
    """int64."""
    pair_rows: NDArray[np.int64]
    """The same on the host, ascending."""
    top_probs_PK: Tensor
    """The teacher's largest probabilities in descending order, as many as are certain; 0 after them."""
    top_counts_P: Tensor
    """int64: how many these are."""

    @property
    def num_rows(self) -> int:
        """Number of rows, R."""
        return len(self.next_ids_R)

    @property
    def num_chunks(self) -> int:
        """Number of chunks, C."""
        return len(self.chunk_starts_C)

    def to(self, device: torch.device) -> Self:
        """The same on a device, but for what stays on the host."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: column.to(device) for name, column in columns.items() if isinstance(column, Tensor)
        }
        return replace(self, **moved)

    def spans(self, max_rows: int) -> list[tuple[int, int]]:
        """Cut the rows into spans that hold whole chunks; a chunk longer than `max_rows` is a span of its own."""
        starts_C, stops_C, spans, start = self.chunk_starts_C, self.chunk_stops_C, list[tuple[int, int]](), 0
        while start < self.num_rows:
            stop = min(start + max_rows, self.num_rows)
            inside = int(np.searchsorted(starts_C, stop)) - 1
            if inside >= 0 and stops_C[inside] > stop:
                stop = int(starts_C[inside] if starts_C[inside] > start else stops_C[inside])
            spans.append((start, stop))
            start = stop
        return spans

    def rows(self, start: int, stop: int) -> Self:
        """A span as a target of its own; `closing_rows_C` may name the row after it."""
        chunk = slice(
            int(np.searchsorted(self.chunk_starts_C, start)),
            int(np.searchsorted(self.chunk_stops_C, stop, side="right")),
        )
        pair = slice(*np.searchsorted(self.pair_rows, [start, stop]).tolist())
        count = chunk.stop - chunk.start
        inside_R = self.chunk_of_R[start:stop] - chunk.start
        return type(self)(
            next_ids_R=self.next_ids_R[start:stop],
            counted_R=self.counted_R[start:stop],
            chunk_of_R=inside_R.clamp(max=count),
            chunk_starts_C=self.chunk_starts_C[chunk] - start,
            chunk_stops_C=self.chunk_stops_C[chunk] - start,
            closing_rows_C=(self.closing_rows_C[chunk] - start).clamp(min=0),
            closes_C=self.closes_C[chunk],
            teacher_logprobs_C=self.teacher_logprobs_C[chunk],
            closing_logmass_C=self.closing_logmass_C[chunk],
            pair_rows_P=self.pair_rows_P[pair] - start,
            pair_rows=self.pair_rows[pair] - start,
            top_probs_PK=self.top_probs_PK[pair],
            top_counts_P=self.top_counts_P[pair],
        )
