"""From a document of a cask to arrays: what the teacher thought before each token, for a window of tokens.

A record belongs to a position, and position i predicts token i + 1. People read tokens, so everything here is by
token: row w of a window says what the teacher thought before it saw token `start + w`. Token 0 of a document has no
such record, nor have tokens whose position was not recorded: their figures are NaN.

Shape legend: W tokens of a window, H head entries and N drawn ids of all of them, R ranges. Probabilities, and nats.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.record.records import Records

MAX_WINDOW: Final = 1024
"""Tokens of a window at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWindow:
    """Tokens [start, start + W) of a document."""

    document: int
    id: str
    """SHA-256 in hex."""
    num_tokens: int
    """Of the whole document."""
    num_recorded: int
    """Positions of the whole document that have a record."""
    recorded_before: int
    """Of these, positions that predict tokens before `start`."""
    context: int
    """Tokens that the teacher read before the document."""
    start: int
    token_ids_W: NDArray[np.int64]
    recorded_W: NDArray[np.bool_]
    """Whether there is a record of what the teacher thought before this token."""
    answer_W: NDArray[np.bool_] | None
    """Whether the token is part of an answer; None where the document does not say."""
    entropy_W: NDArray[np.float64]
    """H(t) of the distribution that predicted the token; a lower bound in casks whose spec says so."""
    probability_W: NDArray[np.float64]
    """t of the token that came. NaN also where an imported record lacks it."""
    tail_mass_W: NDArray[np.float64]
    """r, all that is outside the head."""
    head_offsets_W1: NDArray[np.int64]
    """Entries of row w: [offsets[w], offsets[w + 1])."""
    head_ids_H: NDArray[np.int64]
    head_probabilities_H: NDArray[np.float64]
    draw_offsets_W1: NDArray[np.int64]
    draw_ids_N: NDArray[np.int64]
    """Each drawn id of a row once, ascending."""
    draw_counts_N: NDArray[np.int64]
    """How often it was drawn: of n draws in a row, each stands for mass r / n."""

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + len(self.token_ids_W)

    def head(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids and probabilities of a row's head, in stored order."""
        entries = slice(int(self.head_offsets_W1[row]), int(self.head_offsets_W1[row + 1]))
        return self.head_ids_H[entries], self.head_probabilities_H[entries]

    def draws(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Drawn ids of a row, and how often each was drawn."""
        entries = slice(int(self.draw_offsets_W1[row]), int(self.draw_offsets_W1[row + 1]))
        return self.draw_ids_N[entries], self.draw_counts_N[entries]


def token_window(cask: Cask, document: int, start: int = 0, count: int = MAX_WINDOW) -> TokenWindow:
    """Read tokens [start, start + count) of a document, fewer at its end.

    Args:
        cask: An open cask.
        document: Its number.
        start: First token.
        count: Most tokens, 1 to MAX_WINDOW.

    Raises:
        IndexError: No such document, or `start` or `count` out of their ranges.
        CaskNotFoundError, CaskCorruptionError: As `Cask.read`.
    """
    number, row = cask.locate(document)
    shard = cask.shard(number)
    length = int(shard.token_offsets[row + 1] - shard.token_offsets[row])
    if not 0 <= start < length or not 1 <= count <= MAX_WINDOW:
        raise IndexError(
            f"{cask.place}: tokens from {start}, {count} of them, of document {document}, which has {length}; at most "
            f"{MAX_WINDOW} at a time"
        )
    stop = min(start + count, length)
    # The position before the first token predicts it. A window of token 0 alone has none, and reads one for its token.
    first, last = max(start - 1, 0), max(stop - 1, 1)
    window = shard.read_window(row, first, last)
    width = stop - start
    rows_P = window.extent.positions(len(window.token_ids_L)) + (first + 1 - start)
    next_ids_P = window.token_ids_L[window.extent.positions(len(window.token_ids_L)) + 1].astype(np.int64)
    inside_P = rows_P < width
    records = window.records if inside_P.all() else window.records.select(inside_P)
    rows_P, next_ids_P = rows_P[inside_P], next_ids_P[inside_P]
    recorded_W = np.zeros(width, dtype=np.bool_)
    recorded_W[rows_P] = True
    draw_rows_N, draw_ids_N, draw_counts_N = _drawn(records, rows_P)
    answers_R2, extent = shard.answer_ranges(row), shard.extent(row)
    return TokenWindow(
        document=document,
        id=shard.document_ids[row].tobytes().hex(),
        num_tokens=length,
        num_recorded=extent.num_positions(length),
        recorded_before=extent.rows_before(first),
        context=0 if extent.context is None else extent.context.length,
        start=start,
        token_ids_W=window.token_ids_L[start - first : stop - first].astype(np.int64),
        recorded_W=recorded_W,
        answer_W=None if answers_R2 is None else _marked(answers_R2, start, stop),
        entropy_W=_spread(records.entropy_P.astype(np.float64), rows_P, width),
        probability_W=_spread(_of_next(records, next_ids_P), rows_P, width),
        tail_mass_W=_spread(np.exp(records.log_tail_mass_P.astype(np.float64)), rows_P, width),
        head_offsets_W1=_offsets(np.repeat(rows_P, records.head_counts_P), width),
        head_ids_H=records.head_ids_H.astype(np.int64),
        head_probabilities_H=np.exp(records.head_logprobs_H.astype(np.float64)),
        draw_offsets_W1=_offsets(draw_rows_N, width),
        draw_ids_N=draw_ids_N,
        draw_counts_N=draw_counts_N,
    )


def _spread(values_P: NDArray[np.float64], rows_P: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    values_W = np.full(width, np.nan)
    values_W[rows_P] = values_P
    return values_W


def _offsets(rows: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Where each row's entries begin, of entries in order of their rows; [W + 1]."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=width))]).astype(np.int64)


def _of_next(records: Records, next_ids_P: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probability of the token that came, [P]; NaN where the head lacks it."""
    of_position_H = np.repeat(np.arange(records.num_positions), records.head_counts_P)
    is_next_H = records.head_ids_H.astype(np.int64) == next_ids_P[of_position_H]
    probabilities_P = np.full(records.num_positions, np.nan)
    probabilities_P[of_position_H[is_next_H]] = np.exp(records.head_logprobs_H[is_next_H].astype(np.float64))
    return probabilities_P


def _drawn(
    records: Records, rows_P: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row, id and count of each id that was drawn in a row, [N] each."""
    pairs_N2 = np.stack([np.repeat(rows_P, records.tail_counts_P), records.tail_ids_N.astype(np.int64)], axis=1)
    unique_N2, counts_N = np.unique(pairs_N2, axis=0, return_counts=True)
    return unique_N2[:, 0], unique_N2[:, 1], counts_N.astype(np.int64)


def _marked(ranges_R2: NDArray[Any], start: int, stop: int) -> NDArray[np.bool_]:
    """Which of the tokens [start, stop) are in a range."""
    marked_W = np.zeros(stop - start, dtype=np.bool_)
    for first, end in np.clip(ranges_R2.astype(np.int64) - start, 0, stop - start).tolist():
        marked_W[first:end] = True
    return marked_W
