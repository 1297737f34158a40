"""Text of casks to measure a model on: documents that are evenly spread over all, as many tokens as are asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask import Cask


def cask_texts(casks: Sequence[Cask], tokens: int, *, longest: int) -> list[NDArray[Any]]:
    """Token ids of documents, each from its beginning.

    Of a cask in an object store the shards that hold them are fetched.

    Args:
        casks: those whose documents are meant.
        tokens: about how many in all, and no fewer where the casks have them.
        longest: most tokens of a document; the rest of it is left out.

    Returns:
        One array [L] for each document, in the order of the casks.

    Raises:
        CaskCorruptionError, CaskNotFoundError: a shard is damaged or gone.
    """
    lengths_D = np.concatenate([np.zeros(0, np.int64), *(cask.document_lengths() for cask in casks)])
    lengths_D = np.minimum(lengths_D, longest)
    total = len(lengths_D)
    if not total:
        return []
    count = min(total, int(np.ceil(tokens / lengths_D.mean())))
    while True:
        chosen = np.unique(np.linspace(0, total - 1, count).round().astype(np.int64))
        if count == total or lengths_D[chosen].sum() >= tokens:
            break
        count = min(total, count + max(1, count // 8))
    first_C = np.cumsum([0, *(len(cask) for cask in casks)])
    return [_document(casks, first_C, int(number), int(lengths_D[number])) for number in chosen]


def _document(casks: Sequence[Cask], first_C: NDArray[np.int64], number: int, length: int) -> NDArray[Any]:
    """The beginning of a document, by its number over all casks."""
    at = int(np.searchsorted(first_C, number, side="right")) - 1
    return casks[at].read(number - int(first_C[at])).token_ids_L[:length]
