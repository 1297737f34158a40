"""From the sequences of a `CrossTokenizerDataset` to one batch of tensors.

Shape legend: B sequences, S slots of a sequence, W windows, R rows of the batch, P teacher positions, C chunks as they
were aligned, J chunks after joining, K most likely teacher tokens, V ids of the teacher or the student.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.cross_tokenizer.align import TokenBytes
from logitcask_consumer.cross_tokenizer.dataset import ChunkSequences
from logitcask_consumer.cross_tokenizer.target import ChunkTarget
from logitcask_consumer.data.slots import Slots
from logitcask_schemas.errors import DocumentMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import Records

_CODEC_ERROR: Final = {"f32": 2.0**-22, "f16": 2.0**-10, "u8": 0.05, "u8all": 0.05}
"""Relative error of a stored log-probability, rounded up."""


def next_logprobs(records: Records, next_ids_P: NDArray[Any]) -> NDArray[np.float64]:
    """Log t of the realised next token of each position, [P].

    Raises:
        DocumentMismatchError: a head does not hold it, so records and tokens are shifted.
    """
    counts_P = records.head_counts_P.astype(np.int64)
    next_E = np.flatnonzero(records.head_ids_H == np.repeat(next_ids_P, counts_P))
    row_H = np.repeat(np.arange(len(counts_P)), counts_P)
    logprobs_P = np.full(len(counts_P), np.nan)
    logprobs_P[row_H[next_E]] = records.head_logprobs_H[next_E]
    if np.isnan(logprobs_P).any():
        at = int(np.flatnonzero(np.isnan(logprobs_P))[0])
        raise DocumentMismatchError(
            f"the record of a position does not hold its next token {int(next_ids_P[at])}. Records and tokens do not "
            "belong together (shifted, or another tokenizer): run `logitcask cask verify`."
        )
    return logprobs_P


def mass_of(records: Records, tokens_V: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Estimate the teacher's mass on a set of tokens, [P]: exact on the head, r / n per draw on the tail.

    Unbiased where the tail was drawn; a lower bound where it was not (mode `topk`).
    """
    positions = records.num_positions
    head_P = _sums(
        records.head_counts_P, np.exp(records.head_logprobs_H.astype(np.float64)) * tokens_V[records.head_ids_H]
    )
    draws_P = _sums(records.tail_counts_P, tokens_V[records.tail_ids_N].astype(np.float64))
    share_P = np.exp(records.log_tail_mass_P.astype(np.float64)) / np.maximum(records.tail_counts_P, 1)
    assert len(head_P) == len(draws_P) == positions
    return np.minimum(head_P + share_P * draws_P, 1.0)


def certain_top(
    records: Records, positions_Q: NDArray[np.int64], capture: CaptureSpec
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest probabilities that a record holds without a gap, [Q, K] in descending order, and how many they are.

    A head also holds the next token and pinned ids, whatever their size; what was chosen by size comes before them.
    """
    counts_P = records.head_counts_P.astype(np.int64)
    starts_P = np.cumsum(counts_P) - counts_P
    counts_Q = np.minimum(counts_P[positions_Q], capture.k if capture.mode == "topk" else capture.head_max)
    column_K = np.arange(int(counts_Q.max(initial=0)))
    held_QK = column_K < counts_Q[:, None]
    at_QK = np.where(held_QK, starts_P[positions_Q][:, None] + column_K, 0)
    logprobs_QK = np.where(held_QK, records.head_logprobs_H[at_QK].astype(np.float64), -np.inf)
    if capture.mode == "threshold":
        # Strictly above the threshold, whatever the rounding; and the most likely token, which is always first.
        least = np.log(capture.tau) * (1.0 - _CODEC_ERROR[capture.logprob_codec])
        logprobs_QK[(logprobs_QK < least) & (column_K > 0)] = -np.inf
    probs_QK = -np.sort(-np.exp(logprobs_QK), axis=1)
    return probs_QK.astype(np.float32), np.count_nonzero(logprobs_QK > -np.inf, axis=1)


def _sums(counts_P: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the values of each position, whose counts may be 0."""
    row_of = np.repeat(np.arange(len(counts_P)), counts_P)
    return np.bincount(row_of, weights=values, minlength=len(counts_P)).astype(np.float64)


NUM_COUNTS: Final = 5
"""Of `ChunkBatch.counts`."""


class ChunkBatch(TypedDict):
    """One batch. What decides on cuts stays numpy, on the host; see `ChunkTarget` for what the columns mean."""

    input_ids: Tensor
    """int64 [B, S]."""
    position_ids: Tensor
    """int64 [B, S]; counts from 0 in every window."""
    slots: Tensor
    """int64 [R]: flat index b·S + s of each row."""
    next_ids: Tensor
    counted: Tensor
    chunk_of: Tensor
    chunk_starts: NDArray[np.int64]
    chunk_stops: NDArray[np.int64]
    closing_rows: Tensor
    closes: Tensor
    teacher_logprobs: Tensor
    closing_logmass: Tensor
    pair_rows: Tensor
    pair_rows_host: NDArray[np.int64]
    top_probs: Tensor
    top_counts: Tensor
    counts: Tensor
    """float64 [5]: counted rows; bytes of their tokens; aligned chunks; their bytes; -log t of them, nats."""


def target_of_chunks(batch: ChunkBatch) -> ChunkTarget:
    """The target of a batch, on the batch's device."""
    return ChunkTarget(
        next_ids_R=batch["next_ids"],
        counted_R=batch["counted"],
        chunk_of_R=batch["chunk_of"],
        chunk_starts_C=batch["chunk_starts"],
        chunk_stops_C=batch["chunk_stops"],
        closing_rows_C=batch["closing_rows"],
        closes_C=batch["closes"],
        teacher_logprobs_C=batch["teacher_logprobs"],
        closing_logmass_C=batch["closing_logmass"],
        pair_rows_P=batch["pair_rows"],
        pair_rows=batch["pair_rows_host"],
        top_probs_PK=batch["top_probs"],
        top_counts_P=batch["top_counts"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Where the rows of a batch lie: a window's rows are its last slots, from the first that a loss reads."""

    slot_R: NDArray[np.int64]
    """Number among all used slots."""
    token_R: NDArray[np.int64]
    """Index of the row's next token."""
    within_R: NDArray[np.int64]
    """Slot within the window."""
    window_R: NDArray[np.int64]
    shift_W: NDArray[np.int64]
    """A window's slot s is row shift + s."""

    @classmethod
    def of(cls, read: ChunkSequences) -> "_Rows":
        before_W1 = read.token_offsets_W1 - np.arange(len(read.token_offsets_W1))
        slots_W, first_W = np.diff(before_W1), read.context_W.copy()
        chunked_W = np.flatnonzero(read.chunk_counts_W)
        first_C = (np.cumsum(read.chunk_counts_W) - read.chunk_counts_W)[chunked_W]
        first_W[chunked_W] = np.minimum(first_W[chunked_W], read.chunk_starts_C[first_C])
        rows_W = slots_W - first_W
        shift_W = np.cumsum(rows_W) - rows_W - first_W
        window_R = np.repeat(np.arange(len(rows_W)), rows_W)
        within_R = np.arange(int(rows_W.sum())) - shift_W[window_R]
        slot_R = within_R + before_W1[window_R]
        return cls(slot_R=slot_R, token_R=slot_R + window_R + 1, within_R=within_R, window_R=window_R, shift_W=shift_W)


class ChunkCollator:
    """Builds a `ChunkBatch` from some sequences."""

    def __init__(
        self,
        *,
        seq_len: int,
        capture: CaptureSpec,
        teacher: TokenBytes,
        teacher_vocab: int,
        student: TokenBytes,
        threshold: float = -1.0,
        top: bool = True,
        multiple_of: int = 8,
    ) -> None:
        """Describe the batch.

        Args:
            seq_len: most slots of a sequence.
            capture: how the records were made.
            teacher: the teacher's tokens.
            teacher_vocab: width of the teacher's logits.
            student: the student's tokens.
            threshold: chunks are joined until the teacher's mass on new words, after them, exceeds this.
            top: whether a loss reads the teacher's largest probabilities.
            multiple_of: S is the longest sequence of the batch, rounded up to this, at most `seq_len`.
        """
        self.seq_len, self.multiple_of = seq_len, multiple_of
        self._capture, self._threshold, self._top = capture, threshold, top
        self._student_lengths = student.lengths_V
        self._closing_V = teacher.closing_over(teacher_vocab)

    def __call__(self, sequences: ChunkSequences | Sequence[ChunkSequences]) -> ChunkBatch:
        """Collate; a list holds one read of the dataset.

        Raises:
            DocumentMismatchError: records and tokens are shifted.
        """
        read = sequences if isinstance(sequences, ChunkSequences) else sequences[0]
        rows = _Rows.of(read)
        next_ids_R = read.token_ids_L[rows.token_R]
        counted_R = rows.within_R >= read.context_W[rows.window_R]
        window_C = np.repeat(np.arange(len(read.chunk_counts_W)), read.chunk_counts_W)
        starts_C, stops_C = rows.shift_W[window_C] + read.chunk_starts_C, rows.shift_W[window_C] + read.chunk_stops_C
        teacher = _TeacherChunks.of(read, window_C, self._closing_V)
        ends_J = np.flatnonzero(~teacher.closes_C | (teacher.closing_mass_C > self._threshold))
        begins_J = np.concatenate([ends_J[:0], [0], ends_J[:-1] + 1])[: len(ends_J)]
        closes_J = teacher.closes_C[ends_J] & (teacher.closing_mass_C[ends_J] > 0.0)
        starts_J, stops_J = starts_C[begins_J], stops_C[ends_J]
        chunk_of_R = np.full(len(next_ids_R), len(ends_J))
        chunk_of_R[_runs(starts_J, stops_J)] = np.repeat(np.arange(len(ends_J)), stops_J - starts_J)
        lengths_R = self.byte_lengths(next_ids_R)
        sums = [counted_R.sum(), lengths_R[counted_R].sum(), len(starts_C)]
        sums += [lengths_R[_runs(starts_C, stops_C)].sum(), -teacher.logprobs_C.sum()]
        top_CK, counts_C = self._tops(read, starts_C)
        with np.errstate(divide="ignore"):
            logmass_J = np.where(closes_J, np.log(teacher.closing_mass_C[ends_J]), 0.0)
        logprobs_J = np.add.reduceat(teacher.logprobs_C, begins_J) if len(begins_J) else teacher.logprobs_C
        slots = Slots.of(
            read.token_offsets_W1, read.window_offsets_B1, seq_len=self.seq_len, multiple_of=self.multiple_of
        )
        return ChunkBatch(
            input_ids=slots.input_ids(read.token_ids_L),
            position_ids=slots.position_ids(),
            slots=torch.from_numpy(slots.flat_K[rows.slot_R]),
            next_ids=torch.from_numpy(next_ids_R),
            counted=torch.from_numpy(counted_R),
            chunk_of=torch.from_numpy(chunk_of_R),
            chunk_starts=starts_J,
            chunk_stops=stops_J,
            closing_rows=torch.from_numpy(np.where(closes_J, stops_J, 0)),
            closes=torch.from_numpy(closes_J),
            teacher_logprobs=torch.from_numpy(logprobs_J.astype(np.float32)),
            closing_logmass=torch.from_numpy(logmass_J.astype(np.float32)),
            pair_rows=torch.from_numpy(starts_C),
            pair_rows_host=starts_C,
            top_probs=torch.from_numpy(top_CK),
            top_counts=torch.from_numpy(counts_C),
            counts=torch.tensor([float(value) for value in sums], dtype=torch.float64),
        )

    def _tops(self, read: ChunkSequences, starts_C: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if read.records is None or not self._top:
            return np.zeros((len(starts_C), 0), dtype=np.float32), np.zeros(len(starts_C), dtype=np.int64)
        return certain_top(read.records.records, read.teacher_starts_C, self._capture)

    def byte_lengths(self, ids_R: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of some of the student's tokens; 0 for ids that its tokenizer does not have."""
        return np.append(self._student_lengths, 0)[np.minimum(ids_R, len(self._student_lengths))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TeacherChunks:
    """What the records say of each aligned chunk."""

    logprobs_C: NDArray[np.float64]
    closes_C: NDArray[np.bool_]
    """Whether the window has a chunk after it, whose first record says what may follow."""
    closing_mass_C: NDArray[np.float64]

    @classmethod
    def of(cls, read: ChunkSequences, window_C: NDArray[np.int64], closing_V: NDArray[np.bool_]) -> "_TeacherChunks":
        closes_C = np.append(window_C[1:] == window_C[:-1], False)[: len(window_C)]
        if read.records is None:
            return cls(logprobs_C=np.zeros(0), closes_C=closes_C, closing_mass_C=np.zeros(0))
        collated, starts_C = read.records, read.teacher_starts_C
        counts = np.diff(collated.position_offsets_B1)
        next_P = np.arange(int(counts.sum())) + np.repeat(np.arange(len(counts)), counts) + 1
        logprobs_P = next_logprobs(collated.records, collated.token_ids_L[next_P])
        return cls(
            logprobs_C=np.add.reduceat(logprobs_P, starts_C),
            closes_C=closes_C,
            closing_mass_C=mass_of(collated.records, closing_V)[np.append(starts_C[1:], 0)],
        )


def _runs(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers from each start to below its stop."""
    lengths = stops - starts
    at: NDArray[np.int64] = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return at + np.arange(int(lengths.sum()))
