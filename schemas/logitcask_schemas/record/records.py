"""Records of a run of positions as flat columns, and documents: token ids with their records.

Shape legend: L tokens of a document, P = L - 1 positions (position i predicts token i + 1), H head entries and
N tail draws over all positions, T stored temperatures, R ranges of tokens. Values in nats.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import DocumentMismatchError, InvalidRecordError

IdArray: TypeAlias = NDArray[np.unsignedinteger[Any]]
LogprobArray: TypeAlias = NDArray[np.floating[Any]]


def document_id(token_ids: IdArray) -> bytes:
    """Identity of a document: SHA-256 (32 bytes) over its token ids as little-endian uint32."""
    return hashlib.sha256(np.ascontiguousarray(token_ids, dtype="<u4").tobytes()).digest()


def check_answer_ranges(ranges_R2: NDArray[np.uint32], num_tokens: int, *, where: str) -> None:
    """Raise InvalidRecordError unless ranges are ascending, separate, not empty, and inside a document of L tokens."""
    if ranges_R2.dtype != np.uint32 or ranges_R2.ndim != 2 or ranges_R2.shape[1] != 2:
        raise InvalidRecordError(
            f"{where}: answer ranges should be uint32 of shape [R, 2], got {ranges_R2.dtype} {list(ranges_R2.shape)}"
        )
    flat_R2 = ranges_R2.astype(np.int64).reshape(-1)
    steps = np.diff(flat_R2)
    if (steps[0::2] <= 0).any() or (steps[1::2] < 0).any() or (len(flat_R2) and flat_R2[-1] > num_tokens):
        raise InvalidRecordError(
            f"{where}: answer ranges should ascend, hold a token each and end within {num_tokens} tokens, "
            f"got {ranges_R2.tolist()[:8]}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Columns over P positions; entries of all positions lie end to end, cut by the counts.

    Within a position the head is in descending order of probability (so the first entry is the argmax, except in
    mode `sampled`), then the next token y and pinned ids where the mode did not select them; draws ascend by id and
    may repeat.
    """

    head_counts_P: NDArray[np.uint8]
    head_ids_H: IdArray
    head_logprobs_H: LogprobArray
    """log t_j, natural logarithm, normalised over the whole vocabulary at temperature 1."""
    tail_counts_P: NDArray[np.uint8]
    tail_ids_N: IdArray
    """Drawn ids; each stands for mass r / n of its position."""
    position_columns: Mapping[str, NDArray[Any]]
    """By name, [P] or [P, W], see `record.position_columns`."""
    tail_logprobs_N: LogprobArray | None = None

    @property
    def log_tail_mass_P(self) -> LogprobArray:
        """Log r, the exact mass outside the head; -inf where the head holds everything."""
        return self.position_columns["log_tail_mass"]

    @property
    def entropy_P(self) -> LogprobArray:
        """H(t) of the whole distribution."""
        return self.position_columns["entropy"]

    @property
    def log_z_PT(self) -> LogprobArray | None:
        """Log sum_j t_j^(1/T) per stored temperature."""
        return self.position_columns.get("log_z")

    @property
    def num_positions(self) -> int:
        """P."""
        return len(self.head_counts_P)

    @classmethod
    def join(cls, parts: Sequence["Records"]) -> "Records":
        """Positions of all parts, in order (at least one part, all of one spec); columns are copied."""
        draws = [part.tail_logprobs_N for part in parts if part.tail_logprobs_N is not None]
        return cls(
            head_counts_P=np.concatenate([part.head_counts_P for part in parts]),
            head_ids_H=np.concatenate([part.head_ids_H for part in parts]),
            head_logprobs_H=np.concatenate([part.head_logprobs_H for part in parts]),
            tail_counts_P=np.concatenate([part.tail_counts_P for part in parts]),
            tail_ids_N=np.concatenate([part.tail_ids_N for part in parts]),
            position_columns={
                name: np.concatenate([part.position_columns[name] for part in parts])
                for name in parts[0].position_columns
            },
            tail_logprobs_N=np.concatenate(draws) if draws else None,
        )

    def select(self, keep_P: NDArray[np.bool_]) -> "Records":
        """The records of some positions; columns are copied."""
        head_H = np.repeat(keep_P, self.head_counts_P)
        tail_N = np.repeat(keep_P, self.tail_counts_P)
        return Records(
            head_counts_P=self.head_counts_P[keep_P],
            head_ids_H=self.head_ids_H[head_H],
            head_logprobs_H=self.head_logprobs_H[head_H],
            tail_counts_P=self.tail_counts_P[keep_P],
            tail_ids_N=self.tail_ids_N[tail_N],
            position_columns={name: values[keep_P] for name, values in self.position_columns.items()},
            tail_logprobs_N=None if self.tail_logprobs_N is None else self.tail_logprobs_N[tail_N],
        )

    def check(self, vocab_size: int, *, where: str) -> None:
        """Raise InvalidRecordError where a column breaks the format's invariants (lengths, ids, signs, NaN)."""
        positions, entries, draws = self.num_positions, len(self.head_ids_H), len(self.tail_ids_N)
        lengths: list[tuple[str, int, int]] = [
            ("head_ids", int(self.head_counts_P.sum(dtype=np.int64)), entries),
            ("head_logprobs", entries, len(self.head_logprobs_H)),
            ("tail_counts", positions, len(self.tail_counts_P)),
            ("tail_ids", int(self.tail_counts_P.sum(dtype=np.int64)), draws),
            *((name, positions, len(values)) for name, values in self.position_columns.items()),
        ]
        if self.tail_logprobs_N is not None:
            lengths.append(("tail_logprobs", draws, len(self.tail_logprobs_N)))
        for name, expected, got in lengths:
            if expected != got:
                raise InvalidRecordError(f"{where}: column {name} should have {expected} values, it has {got}")
        if positions and not self.head_counts_P.min():
            at = int(np.argmin(self.head_counts_P))
            raise InvalidRecordError(f"{where}: position {at} has an empty head; the next token must be in it")
        for name, ids in (("head_ids", self.head_ids_H), ("tail_ids", self.tail_ids_N)):
            if len(ids) and int(ids.max()) >= vocab_size:
                raise InvalidRecordError(f"{where}: {name} holds id {int(ids.max())}, the vocabulary has {vocab_size}")
        for name, values in (
            ("head_logprobs", self.head_logprobs_H),
            *self.position_columns.items(),
            ("tail_logprobs", self.tail_logprobs_N),
        ):
            if values is not None and np.isnan(values).any():
                at = int(np.argwhere(np.isnan(values))[0, 0])
                raise InvalidRecordError(f"{where}: {name}[{at}] is NaN; the teacher's logits were not finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRecords:
    """One document: its L token ids, the records of its L - 1 positions, and which tokens are answers."""

    token_ids_L: IdArray
    records: Records
    answer_ranges_R2: NDArray[np.uint32] | None = None
    """Ranges [start, stop) of the tokens that the assistant says, the end of its turns included; ascending, none of
    them empty, none reaching into the next. None where nobody knows; of shape [0, 2] where there is no answer."""

    def __post_init__(self) -> None:
        """Refuse anything but L - 1 positions for L tokens."""
        if self.records.num_positions != len(self.token_ids_L) - 1:
            raise DocumentMismatchError(
                f"a document of {len(self.token_ids_L)} tokens has {len(self.token_ids_L) - 1} positions, "
                f"got records of {self.records.num_positions}; do not shift or pad token ids"
            )

    @property
    def id(self) -> bytes:
        """SHA-256 over the token ids, see `document_id`."""
        return document_id(self.token_ids_L)

    def check(self, vocab_size: int, *, where: str) -> None:
        """Raise InvalidRecordError where tokens and records break the format's invariants or each other.

        Beyond `Records.check`: every position's head holds the token that really came next, which also catches
        records shifted against their tokens, and draws ascend within a position.
        """
        for name, ids in (
            ("token_ids", self.token_ids_L),
            ("head_ids", self.records.head_ids_H),
            ("tail_ids", self.records.tail_ids_N),
        ):
            if ids.dtype.kind != "u":
                raise InvalidRecordError(f"{where}: {name} should be unsigned integers, got {ids.dtype}")
        if len(self.token_ids_L) < 2:
            raise InvalidRecordError(
                f"{where}: has {len(self.token_ids_L)} tokens; without a second one there is no position"
            )
        if (largest := int(self.token_ids_L.max())) >= vocab_size:
            raise InvalidRecordError(f"{where}: token_ids holds id {largest}, the vocabulary has {vocab_size}")
        if self.answer_ranges_R2 is not None:
            check_answer_ranges(self.answer_ranges_R2, len(self.token_ids_L), where=where)
        self.records.check(vocab_size, where=where)
        self._require_next_tokens(where)
        self._require_ascending_draws(where)

    def _require_next_tokens(self, where: str) -> None:
        records = self.records
        counts = records.head_counts_P.astype(np.intp)
        is_next_H = records.head_ids_H == np.repeat(self.token_ids_L[1:], counts)
        held_P = np.logical_or.reduceat(is_next_H, np.cumsum(counts) - counts)
        if not held_P.all():
            at = int(np.argmin(held_P))
            raise InvalidRecordError(
                f"{where}: the head of position {at} lacks the next token {int(self.token_ids_L[at + 1])}; "
                f"{len(held_P) - int(held_P.sum())} of {len(held_P)} positions do. Are records and tokens shifted?"
            )

    def _require_ascending_draws(self, where: str) -> None:
        ids, counts = self.records.tail_ids_N, self.records.tail_counts_P
        if len(ids) < 2:
            return
        descends = ids[1:] < ids[:-1]
        starts = np.cumsum(counts, dtype=np.int64)[:-1]
        starts = starts[(starts > 0) & (starts < len(ids))]
        descends[starts - 1] = False
        if descends.any():
            at = int(np.argmax(descends)) + 1
            position = int(np.searchsorted(np.cumsum(counts, dtype=np.int64), at, side="right"))
            raise InvalidRecordError(
                f"{where}: draws of position {position} do not ascend: {int(ids[at])} follows {int(ids[at - 1])}"
            )
