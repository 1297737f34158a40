"""What makes records valid: the rules of the format, stated once, over any number of documents at a time.

Capture and the writer ask them of a document, and say what is wrong; proving a cask asks them of a block of documents,
and looks document by document only where one is broken. docs/format.md, section 4, has them in words.

Shape legend: D documents, L, P, H and N all their tokens, positions, head entries and tail draws; R ranges of tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.unsignedinteger[Any]]
Offsets = NDArray[np.integer[Any]]
_HALF_MAGNITUDE: Final = np.uint16(0x7FFF)
_HALF_INFINITY: Final = 0x7C00


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBlock:
    """The columns of D documents, end to end."""

    position_offsets_D1: Offsets
    """Positions before each document."""
    head_offsets_D1: Offsets
    tail_offsets_D1: Offsets
    head_counts_P: NDArray[np.uint8]
    head_ids_H: Ids
    tail_counts_P: NDArray[np.uint8]
    tail_ids_N: Ids
    values: Mapping[str, tuple[NDArray[Any], int]]
    """Columns of values by name, each with the number of rows that it should have."""
    token_ids_L: Ids | None = None
    """None where only records are looked at."""
    next_tokens_P: Offsets | None = None
    """Where in `token_ids_L` the token that follows each position stands; None where every position is recorded."""
    head_holds_next: bool = True
    """Whether the rule about the next token applies; it does unless the records were imported."""

    def first_fault(self, vocab_size: int) -> str | None:
        """The first rule that is broken, as a sentence with numbers; None where the block is valid.

        Positions are counted within the block: with one document, within that.

        Args:
            vocab_size: of the teacher's logits.
        """
        return (
            self._wrong_length()
            or self._empty_head()
            or self._id_outside(vocab_size)
            or self._not_a_number()
            or self._lacking_next_token()
            or self._descending_draw()
        )

    def _wrong_length(self) -> str | None:
        """Counts add up to the entries of each document, and every column has its rows."""
        positions = len(self.head_counts_P)
        if len(self.tail_counts_P) != positions:
            return _length("tail_counts", positions, len(self.tail_counts_P))
        last_D = self.position_offsets_D1[1:] - 1
        for name, counts_P, offsets_D1, ids in (
            ("head_ids", self.head_counts_P, self.head_offsets_D1, self.head_ids_H),
            ("tail_ids", self.tail_counts_P, self.tail_offsets_D1, self.tail_ids_N),
        ):
            ends_P = np.cumsum(counts_P, dtype=np.int64)
            total = int(ends_P[-1]) if positions else 0
            if total != len(ids):
                return _length(name, total, len(ids))
            if positions and (ends_P[last_D] != offsets_D1[1:]).any():
                at = int(np.argmax(ends_P[last_D] != offsets_D1[1:]))
                return f"column {name} is cut at {int(offsets_D1[at + 1])}, its counts say {int(ends_P[last_D[at]])}"
        for name, (values, rows) in self.values.items():
            if len(values) != rows:
                return _length(name, rows, len(values))
        return None

    def _empty_head(self) -> str | None:
        if len(self.head_counts_P) and not self.head_counts_P.min():
            return f"position {int(np.argmin(self.head_counts_P))} has an empty head; the next token must be in it"
        return None

    def _id_outside(self, vocab_size: int) -> str | None:
        columns = {"token_ids": self.token_ids_L, "head_ids": self.head_ids_H, "tail_ids": self.tail_ids_N}
        for name, ids in columns.items():
            if ids is not None and len(ids) and int(ids.max()) >= vocab_size:
                return f"{name} holds id {int(ids.max())}, the vocabulary has {vocab_size}"
        return None

    def _not_a_number(self) -> str | None:
        for name, (values, _) in self.values.items():
            if _has_nan(values):
                at = int(np.argwhere(np.isnan(values))[0, 0])
                return f"{name}[{at}] is NaN; the teacher's logits were not finite"
        return None

    def _lacking_next_token(self) -> str | None:
        """Every head holds the token that came next, which also catches records shifted against their tokens."""
        if self.token_ids_L is None or not self.head_holds_next:
            return None
        if self.next_tokens_P is not None:
            next_ids_P = self.token_ids_L[self.next_tokens_P]
        else:
            follows_L = np.ones(len(self.token_ids_L), dtype=bool)
            # A document of P positions has P + 1 tokens, of which the first follows nothing.
            follows_L[self.position_offsets_D1[:-1] + np.arange(len(self.position_offsets_D1) - 1)] = False
            next_ids_P = self.token_ids_L[follows_L]
        ends_P = np.cumsum(self.head_counts_P, dtype=np.int64)
        if _heads_hold(self.head_ids_H, ends_P - self.head_counts_P, ends_P, next_ids_P):
            return None
        is_next_H = self.head_ids_H == np.repeat(next_ids_P, self.head_counts_P)
        holds_P = np.logical_or.reduceat(is_next_H, ends_P - self.head_counts_P)
        at = int(np.argmin(holds_P))
        return (
            f"the head of position {at} lacks the next token {int(next_ids_P[at])}; "
            f"{len(holds_P) - int(holds_P.sum())} of {len(holds_P)} positions do. Are records and tokens shifted?"
        )

    def _descending_draw(self) -> str | None:
        """Draws of a position ascend by id, and may repeat."""
        ids = self.tail_ids_N
        if len(ids) < 2:
            return None
        descends = ids[1:] < ids[:-1]
        ends_P = np.cumsum(self.tail_counts_P, dtype=np.int64)
        inside = ends_P[(ends_P > 0) & (ends_P < len(ids))]
        descends[inside - 1] = False
        if not descends.any():
            return None
        at = int(np.argmax(descends)) + 1
        position = int(np.searchsorted(ends_P, at, side="right"))
        return f"draws of position {position} do not ascend: {int(ids[at])} follows {int(ids[at - 1])}"


def _length(name: str, expected: int, got: int) -> str:
    return f"column {name} should have {expected} values, it has {got}"


def _heads_hold(head_ids_H: Ids, starts_P: Offsets, ends_P: Offsets, next_ids_P: Ids) -> bool:
    """Whether every position's head, which is not empty, holds an id."""
    # Where the mode did not select it, it is the last entry or before pinned ones; then the others, one by one.
    lacking = np.flatnonzero(head_ids_H[ends_P - 1] != next_ids_P)
    at, stop, next_ids = starts_P[lacking], ends_P[lacking] - 1, next_ids_P[lacking]
    while len(at):
        if (at >= stop).any():
            return False
        lacks = head_ids_H[at] != next_ids
        at, stop, next_ids = at[lacks] + 1, stop[lacks], next_ids[lacks]
    return True


def _has_nan(values: NDArray[Any]) -> bool:
    if values.dtype.kind != "f":
        return False  # a code of `codec_u8`
    if values.dtype != np.float16:
        return bool(np.isnan(values).any())
    # Ten times as fast as isnan, which numpy does one by one for this type.
    return bool(len(values)) and int((values.view(np.uint16) & _HALF_MAGNITUDE).max()) > _HALF_INFINITY


def ranges_are_valid(
    ranges_R2: NDArray[np.unsignedinteger[Any]], document_R: NDArray[np.integer[Any]], lengths_D: Offsets
) -> bool:
    """Whether ranges of tokens, or of positions, ascend, hold one each, and end within their documents.

    Args:
        ranges_R2: first and end of each.
        document_R: number of its document, ascending.
        lengths_D: tokens, or positions, of each document.
    """
    ranges = ranges_R2.astype(np.int64)
    follows = document_R[1:] == document_R[:-1]
    return bool(
        (ranges[:, 0] < ranges[:, 1]).all()
        and (ranges[:, 1] <= lengths_D[document_R]).all()
        and (ranges[1:, 0] >= ranges[:-1, 1])[follows].all()
    )
