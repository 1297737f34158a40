"""From windows of records to one batch of tensors: concatenation of views, no Python object per position or entry.

Shape legend: B sequences, S slots of a sequence, T trained positions of the batch, H head entries, N tail draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.data.dataset import WindowRecords
from logitcask_consumer.losses.target import Offsets, SparseTarget
from logitcask_schemas.errors import DocumentMismatchError


class Batch(TypedDict):
    """One batch. Offsets stay numpy arrays: they are needed on the host, and move to no device."""

    input_ids: Tensor
    """int64 [B, S]; unused slots hold `pad_id`."""
    position_ids: Tensor
    """int64 [B, S]; counts from 0 in every window, which is what keeps packed documents apart. 0 in unused slots."""
    slots: Tensor
    """int64 [T]: flat index b·S + s of each trained position."""
    next_ids: Tensor
    """int32 [T]: realised next token of each trained position."""
    head_ids: Tensor
    """int32 [H]."""
    head_logprobs: Tensor
    """[H], in the stored dtype, nats."""
    head_offsets: Offsets
    """numpy int64 [T + 1]."""
    tail_ids: Tensor
    """int32 [N]."""
    tail_offsets: Offsets
    """numpy int64 [T + 1]."""
    log_tail_mass: Tensor
    """[T], in the stored dtype, nats."""
    entropy: Tensor
    """[T], in the stored dtype, nats."""
    documents: Tensor
    """int32 [T]: number of the document of each trained position."""
    tail_logprobs: Tensor | None
    """[N], log t of the draws, nats; None where the cask has none or the collator was not asked for them."""


class Collator:
    """Builds a `Batch` from the windows of some sequences."""

    def __init__(self, *, seq_len: int, pad_id: int, multiple_of: int = 8, tail_logprobs: bool = False) -> None:
        """Describe the batch.

        Args:
            seq_len: most slots of a sequence.
            pad_id: token id of unused slots; they are seen by no trained position.
            multiple_of: S is the longest sequence of the batch, rounded up to this, at most `seq_len`.
            tail_logprobs: bring log t of the tail draws where the cask has them; training does not need them.
        """
        self.seq_len = seq_len
        self.pad_id = pad_id
        self.multiple_of = multiple_of
        self.tail_logprobs = tail_logprobs

    def __call__(self, sequences: Sequence[Sequence[WindowRecords]]) -> Batch:
        """Collate.

        Raises:
            DocumentMismatchError: a position's next token is not in its head, so records and tokens are shifted.
        """
        windows = [window for sequence in sequences for window in sequence]
        sizes_W = np.array([len(window.token_ids_S1) - 1 for window in windows], dtype=np.int64)
        context_W = np.array([window.context for window in windows], dtype=np.int64)
        sequence_W = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        used_B = np.bincount(sequence_W, weights=sizes_W, minlength=len(sequences)).astype(np.int64)
        width = min(max(1, -(-int(used_B.max()) // self.multiple_of)) * self.multiple_of, self.seq_len)
        # Windows of a sequence lie end to end: slot = b·S + slots before it within the sequence.
        before_W = np.cumsum(sizes_W) - sizes_W
        first_W = sequence_W * width + before_W - (np.cumsum(used_B) - used_B)[sequence_W]
        within = np.arange(int(sizes_W.sum())) - np.repeat(before_W, sizes_W)
        slots = np.repeat(first_W, sizes_W) + within
        trained = within >= np.repeat(context_W, sizes_W)
        input_ids = np.full(len(sequences) * width, self.pad_id, dtype=np.int64)
        input_ids[slots] = _join([window.token_ids_S1[:-1] for window in windows], np.uint16)
        position_ids = np.zeros(len(sequences) * width, dtype=np.int64)
        position_ids[slots] = within
        next_ids = _join([window.token_ids_S1[1:] for window in windows], np.uint16)[trained]
        columns = _columns(windows)
        documents = np.repeat(np.array([window.document for window in windows], dtype=np.int32), sizes_W)[trained]
        _require_next_token(columns["head_ids"], columns["head_offsets"], next_ids, documents)
        return Batch(
            input_ids=torch.from_numpy(input_ids.reshape(-1, width)),
            position_ids=torch.from_numpy(position_ids.reshape(-1, width)),
            slots=torch.from_numpy(slots[trained]),
            next_ids=torch.from_numpy(next_ids.astype(np.int32)),
            head_ids=torch.from_numpy(columns["head_ids"].astype(np.int32)),
            head_logprobs=torch.from_numpy(columns["head_logprobs"]),
            head_offsets=columns["head_offsets"],
            tail_ids=torch.from_numpy(columns["tail_ids"].astype(np.int32)),
            tail_offsets=columns["tail_offsets"],
            log_tail_mass=torch.from_numpy(columns["log_tail_mass"]),
            entropy=torch.from_numpy(columns["entropy"]),
            documents=torch.from_numpy(documents),
            tail_logprobs=_tail_logprobs(windows) if self.tail_logprobs else None,
        )


def target_of(batch: Batch, *, sampled_tail: bool) -> SparseTarget:
    """The sparse target of a batch, on the batch's device.

    Args:
        batch: from a `Collator`, perhaps moved to a device.
        sampled_tail: whether the records come from mode `threshold` or `sampled`.
    """
    return SparseTarget.from_columns(
        head_ids_H=batch["head_ids"],
        head_logprobs_H=batch["head_logprobs"],
        head_offsets_R1=batch["head_offsets"],
        tail_ids_N=batch["tail_ids"],
        tail_offsets_R1=batch["tail_offsets"],
        log_tail_mass_R=batch["log_tail_mass"],
        next_ids_R=batch["next_ids"],
        sampled_tail=sampled_tail,
    )


def _columns(windows: Sequence[WindowRecords]) -> Mapping[str, NDArray[Any]]:
    records = [window.records for window in windows]
    return {
        "head_ids": _join([part.head_ids_H for part in records], np.uint16),
        "head_logprobs": _join([part.head_logprobs_H for part in records], np.float16),
        "head_offsets": _offsets([part.head_counts_P for part in records]),
        "tail_ids": _join([part.tail_ids_N for part in records], np.uint16),
        "tail_offsets": _offsets([part.tail_counts_P for part in records]),
        "log_tail_mass": _join([part.log_tail_mass_P for part in records], np.float16),
        "entropy": _join([part.entropy_P for part in records], np.float16),
    }


def _tail_logprobs(windows: Sequence[WindowRecords]) -> Tensor | None:
    parts = [window.records.tail_logprobs_N for window in windows]
    present = [part for part in parts if part is not None]
    return torch.from_numpy(_join(present, np.float16)) if len(present) == len(parts) else None


def _join(parts: Sequence[NDArray[Any]], empty: type[np.generic]) -> NDArray[Any]:
    """The parts end to end; no parts, as in a batch of empty sequences, give an empty array of the dtype `empty`."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype=empty)


def _offsets(counts: Sequence[NDArray[np.uint8]]) -> Offsets:
    joined = _join(counts, np.uint8)
    offsets = np.zeros(len(joined) + 1, dtype=np.int64)
    np.cumsum(joined, out=offsets[1:])
    return offsets


def _require_next_token(
    head_ids: NDArray[Any], head_offsets: Offsets, next_ids: NDArray[Any], documents: NDArray[np.int32]
) -> None:
    """Every head holds its realised next token; records shifted by one position would not."""
    if not len(next_ids):
        return
    found = np.add.reduceat(head_ids == np.repeat(next_ids, np.diff(head_offsets)), head_offsets[:-1], dtype=np.int64)
    if not found.all():
        row = int(np.argmin(found != 0))
        raise DocumentMismatchError(
            f"document {int(documents[row])}: the record of a position does not hold its next token "
            f"{int(next_ids[row])}. Records and tokens do not belong together (shifted, or another tokenizer): run "
            "`logitcask cask verify`."
        )
