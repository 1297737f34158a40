"""Documents that a corpus has more than once: each belongs to the chunk of its first occurrence, wherever that runs."""

import numpy as np
from numpy.typing import NDArray


class Repeats:
    """Of one corpus.

    Args:
        ids_D32: ids of its documents, [D, 32] bytes, in its order.
    """

    def __init__(self, ids_D32: NDArray[np.uint8]) -> None:
        ids_D = np.ascontiguousarray(ids_D32).view("S32").reshape(-1)
        _, first_U, unique_D = np.unique(ids_D, return_index=True, return_inverse=True)  # the first place of each
        first_D = first_U[unique_D.reshape(-1)]
        self.documents_R = np.flatnonzero(first_D != np.arange(len(first_D)))
        """Numbers of the documents that occurred earlier, ascending; [R]."""
        self._first_R = first_D[self.documents_R]

    def within(self, documents: range) -> dict[int, int]:
        """Those among consecutive documents, each with the number of its first occurrence."""
        start, stop = np.searchsorted(self.documents_R, [documents.start, documents.stop])
        return dict(
            zip(self.documents_R[start:stop].tolist(), self._first_R[start:stop].tolist(), strict=True),
        )
