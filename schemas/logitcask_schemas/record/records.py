"""Records of a run of positions as flat columns, and documents: token ids with their records.

Shape legend: L tokens of a document, P = L - 1 positions (position i predicts token i + 1), H head entries and
N tail draws over all positions, T stored temperatures, R ranges of tokens. Values in nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import DocumentMismatchError, InvalidRecordError
from logitcask_schemas.record.extent import WHOLE, Extent, IdArray, document_id
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.rules import RecordBlock, ranges_are_valid

LogprobArray: TypeAlias = NDArray[np.floating[Any]]


def check_answer_ranges(ranges_R2: NDArray[np.uint32], num_tokens: int, *, where: str) -> None:
    """Raise InvalidRecordError unless ranges are ascending, separate, not empty, and inside a document of L tokens."""
    if ranges_R2.dtype != np.uint32 or ranges_R2.ndim != 2 or ranges_R2.shape[1] != 2:
        raise InvalidRecordError(
            f"{where}: answer ranges should be uint32 of shape [R, 2], got {ranges_R2.dtype} {list(ranges_R2.shape)}"
        )
    if not ranges_are_valid(ranges_R2, np.zeros(len(ranges_R2), dtype=np.int64), np.array([num_tokens])):
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

    def values(self) -> dict[str, tuple[NDArray[Any], int]]:
        """Columns that are neither ids nor counts, by name, each with the number of rows that it should have."""
        values: dict[str, tuple[NDArray[Any], int]] = {"head_logprobs": (self.head_logprobs_H, len(self.head_ids_H))}
        values |= {name: (column, self.num_positions) for name, column in self.position_columns.items()}
        if self.tail_logprobs_N is not None:
            values["tail_logprobs"] = (self.tail_logprobs_N, len(self.tail_ids_N))
        return values

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

    def check(
        self,
        vocab_size: int,
        *,
        where: str,
        token_ids_L: IdArray | None = None,
        extent: Extent = WHOLE,
        head_holds_next: bool = True,
    ) -> None:
        """Raise InvalidRecordError where a rule of `record.rules` is broken; with tokens, also where they disagree.

        Args:
            vocab_size: of the teacher's logits.
            where: what the error begins with.
            token_ids_L: of the one document whose positions these are.
            extent: which of its positions these are.
            head_holds_next: False of imported records, whose heads may lack the next token.
        """
        block = RecordBlock(
            position_offsets_D1=np.array([0, self.num_positions]),
            head_offsets_D1=np.array([0, len(self.head_ids_H)]),
            tail_offsets_D1=np.array([0, len(self.tail_ids_N)]),
            head_counts_P=self.head_counts_P,
            head_ids_H=self.head_ids_H,
            tail_counts_P=self.tail_counts_P,
            tail_ids_N=self.tail_ids_N,
            values=self.values(),
            token_ids_L=token_ids_L,
            next_tokens_P=None if extent.recorded_R2 is None else extent.positions(0) + 1,
            head_holds_next=head_holds_next,
        )
        if fault := block.first_fault(vocab_size):
            raise InvalidRecordError(f"{where}: {fault}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRecords:
    """One document: its L token ids, the records of its positions, and which tokens are answers.

    It has L - 1 positions, and records of all of them unless its extent says otherwise.
    """

    token_ids_L: IdArray
    records: Records
    answer_ranges_R2: NDArray[np.uint32] | None = None
    """Ranges [start, stop) of the tokens that the assistant says, the end of its turns included; ascending, none of
    them empty, none reaching into the next. None where nobody knows; of shape [0, 2] where there is no answer."""
    extent: Extent = WHOLE
    """Which positions are recorded, and under which context."""
    hints: HintRows | None = None
    """A row per recorded position, or one at the last token, as the spec's hints say; None where it has none. A shard
    does not hold them: they are in the file beside it, see `Cask.hints`."""

    def __post_init__(self) -> None:
        """Refuse anything but a record for every position: L - 1 for L tokens, or as many as the extent has."""
        expected = self.extent.num_positions(len(self.token_ids_L))
        if self.records.num_positions != expected:
            recorded = "positions" if self.extent.recorded_R2 is None else "recorded positions"
            raise DocumentMismatchError(
                f"a document of {len(self.token_ids_L)} tokens has {expected} {recorded}, "
                f"got records of {self.records.num_positions}; do not shift or pad token ids"
            )

    @property
    def id(self) -> bytes:
        """SHA-256 over the token ids and what is recorded of them, see `document_id`."""
        return document_id(self.token_ids_L, self.extent)

    def check(self, vocab_size: int, *, where: str, head_holds_next: bool = True) -> None:
        """Raise InvalidRecordError where tokens and records break a rule of `record.rules`, or each other."""
        self.check_form(where=where)
        self.records.check(
            vocab_size,
            where=where,
            token_ids_L=self.token_ids_L,
            extent=self.extent,
            head_holds_next=head_holds_next,
        )

    def check_form(self, *, where: str) -> None:
        """Raise InvalidRecordError where ids, ranges or extent have not the form that the rules of records build on."""
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
        if self.answer_ranges_R2 is not None:
            check_answer_ranges(self.answer_ranges_R2, len(self.token_ids_L), where=where)
        self.extent.check(len(self.token_ids_L), where=where)
