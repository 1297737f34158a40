"""From the records of some sequences to one batch of tensors: the columns as they were collated, and where they belong.

Shape legend: B sequences, S slots of a sequence, W windows, K used slots, T trained positions of the batch, H head
entries, N tail draws, Z stored temperatures; R positions looked at more closely, E their head entries.
"""

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.data.hint_rows import HintTensors, hint_tensors
from logitcask_consumer.data.sequence_records import SequenceRecords, slots_of
from logitcask_consumer.data.slots import Slots
from logitcask_consumer.data.vocabulary import StudentVocabulary
from logitcask_consumer.losses.target import Offsets, SparseTarget
from logitcask_schemas.errors import DocumentMismatchError, InvalidRecordError


class Batch(TypedDict):
    """One batch. Offsets stay numpy arrays: they are needed on the host, and move to no device."""

    input_ids: Tensor
    """int64 [B, S]; unused slots hold `FILL_ID`."""
    position_ids: Tensor
    """int64 [B, S]; counts from 0 in every window, which is what keeps packed documents apart. 0 in unused slots."""
    labels: Tensor
    """int64 [B, S]: the realised next token in each trained slot, -100 in all others. Transformers' Trainer counts them
    to divide the loss of a step; they are shifted already, unlike those that its models take."""
    shift_labels: Tensor
    """The same tensor, under the name by which transformers knows labels that are shifted."""
    slots: Tensor
    """int64 [T]: flat index b·S + s of each trained position."""
    next_ids: Tensor
    """int32 [T]: realised next token of each trained position."""
    head_ids: Tensor
    """[H], in the stored dtype: uint16 or uint32, which torch can convert and little else; see `target_of`."""
    head_logprobs: Tensor
    """[H], in the stored dtype, nats."""
    head_offsets: Offsets
    """numpy int64 [T + 1]."""
    tail_ids: Tensor
    """[N], as `head_ids`."""
    tail_offsets: Offsets
    """numpy int64 [T + 1]."""
    position_columns: dict[str, Tensor]
    """By name, [T] or [T, W] in the stored dtype, nats; see `logitcask_schemas.record.position_columns`. Of texts that
    a student sampled also `policy`, float32 [T, 4], see `sampled_dataset`."""
    documents: Tensor
    """int32 [T]: number of the document of each trained position."""
    tail_logprobs: Tensor | None
    """[N], log t of the draws, in the stored dtype, nats; None where the cask does not store them."""
    weights: Tensor | None
    """float32 [T], above 0; None for 1. Positions of weight 0 are not in the batch."""
    positions: int
    """Those of the sequences, with the ones of weight 0 that were left out."""
    max_id: int
    """Largest id of the records and of the realised tokens; a student must have it."""
    hints: NotRequired[HintTensors]
    """Rows of the trained positions; only where the dataset was asked for them."""


class Collator:
    """Builds a `Batch` from some sequences of a `CaskDataset`."""

    def __init__(self, *, seq_len: int, multiple_of: int = 8, vocabulary: StudentVocabulary | None = None) -> None:
        """Describe the batch.

        Args:
            seq_len: most slots of a sequence.
            multiple_of: S is the longest sequence of the batch, rounded up to this, at most `seq_len`.
            vocabulary: the ids that the student can predict; None where it has all that records may hold.
        """
        self.seq_len = seq_len
        self.multiple_of = multiple_of
        self.vocabulary = vocabulary

    def __call__(self, sequences: SequenceRecords | Sequence[SequenceRecords]) -> Batch:
        """Collate.

        Args:
            sequences: of one call of the dataset, whose columns become tensors without a copy; or several such, which
                are joined first.

        Raises:
            ValueError: a sequence has more slots than `seq_len`.
            DocumentMismatchError: a position's next token is not in its head, so records and tokens are shifted.
            IdentityMismatchError: tokens or records hold an id that the student does not have.
        """
        read = sequences if isinstance(sequences, SequenceRecords) else SequenceRecords.join(sequences)
        records = read.windows.records
        positions, keep_P = records.num_positions, _kept(read.weights_P)
        windows = read.windows
        slots = Slots.of(
            windows.token_offsets_B1, read.window_offsets_B1, seq_len=self.seq_len, multiple_of=self.multiple_of
        )
        slots_T, tokens_T = slots.flat_K, slots.token_K
        counts_W = np.diff(windows.position_offsets_B1)
        if windows.slots_P is not None or (slots.counts_W != counts_W).any():
            first_W = np.cumsum(slots.counts_W) - slots.counts_W
            trained_T = np.repeat(first_W, counts_W) + slots_of(windows)
            slots_T, tokens_T = slots_T[trained_T], tokens_T[trained_T]
        next_ids_T = windows.token_ids_L[tokens_T + 1]
        head_offsets, tail_offsets = _offsets(records.head_counts_P), _offsets(records.tail_counts_P)
        documents_T = np.repeat(read.documents_W.astype(np.int32), counts_W)
        if read.head_holds_next:
            _require_next_token(records.head_ids_H, head_offsets, next_ids_T, documents_T)
        weights_T, hints = read.weights_P, read.hints
        if keep_P is not None:
            hints = None if hints is None else hints.select(keep_P)
            records = records.select(keep_P)
            slots_T, next_ids_T, documents_T = slots_T[keep_P], next_ids_T[keep_P], documents_T[keep_P]
            weights_T = None if weights_T is None else weights_T[keep_P]
            head_offsets, tail_offsets = _offsets(records.head_counts_P), _offsets(records.tail_counts_P)
        if self.vocabulary is not None:
            self.vocabulary.require_tokens_of(windows.token_ids_L, windows.token_offsets_B1, read.documents_W)
            self.vocabulary.require_records(records, documents_T)
        labels = slots.labels(slots_T, next_ids_T)
        batch = Batch(
            labels=labels,
            shift_labels=labels,
            input_ids=slots.input_ids(windows.token_ids_L),
            position_ids=slots.position_ids(),
            slots=torch.from_numpy(slots_T),
            next_ids=torch.from_numpy(next_ids_T.astype(np.int32)),
            head_ids=torch.from_numpy(records.head_ids_H),
            head_logprobs=torch.from_numpy(records.head_logprobs_H),
            head_offsets=head_offsets,
            tail_ids=torch.from_numpy(records.tail_ids_N),
            tail_offsets=tail_offsets,
            position_columns={name: torch.from_numpy(values) for name, values in records.position_columns.items()},
            documents=torch.from_numpy(documents_T),
            tail_logprobs=_tensor(records.tail_logprobs_N),
            weights=_tensor(weights_T),
            positions=positions,
            max_id=max(int(ids.max(initial=0)) for ids in (records.head_ids_H, records.tail_ids_N, next_ids_T)),
        )
        if hints is not None:
            batch["hints"] = hint_tensors(hints)
        return batch


def target_of(batch: Batch, *, sampled_tail: bool, log_z_column: int | None = None) -> SparseTarget:
    """The sparse target of a batch, on the batch's device.

    Args:
        batch: from a `Collator`, perhaps moved to a device.
        sampled_tail: whether the records come from mode `threshold` or `sampled`.
        log_z_column: which of the stored temperatures the target is for; None for temperature 1.

    Raises:
        InvalidRecordError: the cask stores no log Z.
    """
    columns = batch["position_columns"]
    log_z_TZ = columns.get("log_z")
    if log_z_column is not None and log_z_TZ is None:
        raise InvalidRecordError("a target at another temperature needs log_z, which this cask does not store")
    return SparseTarget.from_columns(
        head_ids_H=batch["head_ids"],
        head_logprobs_H=batch["head_logprobs"],
        head_offsets_R1=batch["head_offsets"],
        tail_ids_N=batch["tail_ids"],
        tail_offsets_R1=batch["tail_offsets"],
        log_tail_mass_R=columns["log_tail_mass"],
        next_ids_R=batch["next_ids"],
        sampled_tail=sampled_tail,
        tail_logprobs_N=batch["tail_logprobs"],
        entropy_R=columns["entropy"],
        log_z_R=None if log_z_column is None or log_z_TZ is None else log_z_TZ[:, log_z_column],
        documents_R=batch["documents"],
        policy_R4=columns.get("policy"),
    )


def _kept(weights_P: NDArray[np.float32] | None) -> NDArray[np.bool_] | None:
    """Which positions have a weight above 0; None where all do."""
    if weights_P is None or (weights_P > 0).all():
        return None
    keep_P: NDArray[np.bool_] = weights_P > 0
    return keep_P


def _tensor(column: NDArray[Any] | None) -> Tensor | None:
    return None if column is None else torch.from_numpy(column)


def _offsets(counts_T: NDArray[np.uint8]) -> Offsets:
    offsets = np.zeros(len(counts_T) + 1, dtype=np.int64)
    np.cumsum(counts_T, out=offsets[1:])
    return offsets


def _require_next_token(
    head_ids_H: NDArray[Any], head_offsets: Offsets, next_ids_T: NDArray[Any], documents_T: NDArray[np.int32]
) -> None:
    """Every head holds its realised next token; records shifted by one position would not."""
    # It mostly is the likeliest token, or stands at the end because it was too unlikely for the head otherwise.
    holds_next_T = (head_ids_H[head_offsets[:-1]] == next_ids_T) | (head_ids_H[head_offsets[1:] - 1] == next_ids_T)
    inner_R = np.flatnonzero(~holds_next_T)
    counts_R = head_offsets[inner_R + 1] - head_offsets[inner_R]
    before_R = np.cumsum(counts_R) - counts_R
    row_E = np.repeat(inner_R, counts_R)
    entry_E = np.repeat(head_offsets[inner_R] - before_R, counts_R) + np.arange(len(row_E))
    holds_next_T[row_E[head_ids_H[entry_E] == next_ids_T[row_E]]] = True
    if not holds_next_T.all():
        row = int(np.argmin(holds_next_T))
        raise DocumentMismatchError(
            f"document {int(documents_T[row])}: the record of a position does not hold its next token "
            f"{int(next_ids_T[row])}. Records and tokens do not belong together (shifted, or another tokenizer): run "
            "`logitcask cask verify`."
        )
