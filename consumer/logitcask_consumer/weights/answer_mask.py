"""Which tokens are answers: as documents say, or as the text around them tells.

Shape legend: W windows of documents, R ranges of one, L tokens of the windows' documents.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.weight import Positions, WeightParameterError


def answer_mask(positions: Positions, spans_L: NDArray[np.bool_] | None, *, narrow: bool) -> NDArray[np.bool_]:
    """Which tokens are answers, [L]: as documents say, else as spans of text do.

    Args:
        positions: the windows.
        spans_L: tokens between texts; None where every document says.
        narrow: whether the spans also narrow the answers of documents that say so and have some.

    Raises:
        WeightParameterError: a document does not say, and there are no spans.
    """
    ranges_W, offsets_W1 = positions.answers_W, positions.token_offsets_W1
    windows = len(offsets_W1) - 1
    if ranges_W is None:
        ranges_W = [None] * windows
    stored_L = inside_ranges(ranges_W, offsets_W1)
    if spans_L is None:
        if silent := [window for window, ranges in enumerate(ranges_W) if ranges is None]:
            raise WeightParameterError(
                f"document {positions.document_ids_W[silent[0]].tobytes().hex()} does not say which of its tokens are "
                "answers; bind the weight to the casks that it is used with"
            )
        return stored_L
    trusted = [ranges is not None and (len(ranges) > 0 or not narrow) for ranges in ranges_W]
    trusted_L = np.repeat(np.array(trusted, dtype=np.bool_), np.diff(offsets_W1))
    return np.where(trusted_L, stored_L & spans_L if narrow else stored_L, spans_L)


def inside_ranges(
    ranges_W: Sequence[NDArray[np.integer[Any]] | None], token_offsets_W1: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each token lies in a range [start, stop) of its window's document, [L].

    Args:
        ranges_W: [R, 2] for each window, counted from its document's first token; None for none.
        token_offsets_W1: into the tokens, which begin with each document's first one; ranges may end behind them.
    """
    # +1 where a range starts, -1 where it stops: the running sum is above 0 inside.
    steps = np.zeros(int(token_offsets_W1[-1]) + 1, dtype=np.int64)
    windows = [window for window, ranges in enumerate(ranges_W) if ranges is not None and len(ranges)]
    if windows:
        rows = [np.asarray(ranges_W[window], dtype=np.int64) for window in windows]
        window_R = np.repeat(windows, [len(ranges) for ranges in rows])
        starts_R, stops_R = token_offsets_W1[window_R], token_offsets_W1[window_R + 1]
        at_R2 = np.minimum(np.concatenate(rows) + starts_R[:, None], stops_R[:, None])
        np.add.at(steps, at_R2[:, 0], 1)
        np.add.at(steps, at_R2[:, 1], -1)
    inside_L: NDArray[np.bool_] = np.cumsum(steps[:-1]) > 0
    return inside_L
