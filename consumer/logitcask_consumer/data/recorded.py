"""Which positions of the documents of some casks have records, for all documents at once.

Shape legend: D documents of all casks, R ranges of recorded positions, Q questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask import Cask

_SPACE: Final = 1 << 32
"""More than a document has positions: a document's number times this, plus a position, sorts both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPositions:
    """Ranges of the documents that are recorded in part; of all others every position is."""

    is_partial_D: NDArray[np.bool_]
    starts_R: NDArray[np.int64]
    """Document · 2^32 + first position of each range, ascending."""
    sizes_R: NDArray[np.int64]
    """Positions of each range."""

    @classmethod
    def of(cls, casks: Sequence[Cask]) -> Self:
        """Of the documents of these casks, numbered one cask after the other; opens shards with such documents only.

        Raises:
            CaskCorruptionError, CaskNotFoundError: a shard cannot be opened.
        """
        is_partial_D = np.zeros(sum(map(len, casks)), dtype=np.bool_)
        starts, sizes, first = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)], 0
        for cask in casks:
            for number, entry in enumerate(cask.entries):
                recorded = cask.shard(number).lists.recorded if entry.recorded_documents else None
                if recorded is not None:
                    ranges_R2 = recorded.values.reshape(-1, 2).astype(np.int64)
                    documents_R = first + recorded.document_G
                    is_partial_D[documents_R] = True
                    starts.append(documents_R * _SPACE + ranges_R2[:, 0])
                    sizes.append(ranges_R2[:, 1] - ranges_R2[:, 0])
                first += entry.documents
        return cls(is_partial_D=is_partial_D, starts_R=np.concatenate(starts), sizes_R=np.concatenate(sizes))

    def between(
        self, documents_Q: NDArray[np.int64], starts_Q: NDArray[np.int64], stops_Q: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """How many of the positions [start, stop) of documents have records, [Q]."""
        if not len(self.starts_R):
            return stops_Q - starts_Q
        partial_Q = self._before(documents_Q, stops_Q) - self._before(documents_Q, starts_Q)
        return np.where(self.is_partial_D[documents_Q], partial_Q, stops_Q - starts_Q)

    def _before(self, documents_Q: NDArray[np.int64], positions_Q: NDArray[np.int64]) -> NDArray[np.int64]:
        """Recorded positions of all documents before one of these; differences within a document count."""
        before_R1 = np.concatenate([[0], np.cumsum(self.sizes_R)])
        keys_Q = documents_Q * _SPACE + positions_Q
        ranges_Q = np.searchsorted(self.starts_R, keys_Q, side="right")
        last_Q = np.maximum(ranges_Q - 1, 0)
        beyond_Q = self.starts_R[last_Q] + self.sizes_R[last_Q] - keys_Q
        # Of the last range that begins before, what lies beyond does not count.
        return before_R1[ranges_Q] - np.where(ranges_Q > 0, np.maximum(beyond_Q, 0), 0)
