"""The records of a batch of training sequences: windows of documents, with weights and hints where they are wanted.

Shape legend: W windows, B sequences, P positions, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.batches import CollatedRecords
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRecords:
    """B sequences; every column was copied once from the mapped shards and is this object's own."""

    window_offsets_B1: NDArray[np.int64]
    """Windows of the sequences before, [B + 1]."""
    documents_W: NDArray[np.int64]
    """Number, over all casks, of the document that each window is cut from."""
    windows: CollatedRecords
    """Of each window its input tokens and one more (slot i predicts token i + 1), and the records of its last slots:
    those before give context and carry no loss, see the module `windows`."""
    weights_P: NDArray[np.float32] | None = None
    """Weight of each position, see the package `weights`; None for 1."""
    hints: HintRows | None = None
    """The teacher's vectors at each position; None where the dataset was not asked for them."""
    head_holds_next: bool = True
    """Whether every head holds the next token, as all but imported records do."""

    def __len__(self) -> int:
        """Number of windows, W."""
        return len(self.documents_W)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Several, at least one, as one; copies every column unless there is nothing to join."""
        if len(parts) == 1:
            return parts[0]
        windows = [part.windows for part in parts]
        return cls(
            window_offsets_B1=_joined([part.window_offsets_B1 for part in parts]),
            documents_W=np.concatenate([part.documents_W for part in parts]),
            weights_P=_concatenated([part.weights_P for part in parts]),
            hints=None if parts[0].hints is None else HintRows.join([part.hints for part in parts if part.hints]),
            head_holds_next=all(part.head_holds_next for part in parts),
            windows=CollatedRecords(
                token_ids_L=np.concatenate([collated.token_ids_L for collated in windows]),
                token_offsets_B1=_joined([collated.token_offsets_B1 for collated in windows]),
                position_offsets_B1=_joined([collated.position_offsets_B1 for collated in windows]),
                records=Records.join([collated.records for collated in windows]),
                slots_P=_joined_slots(windows),
            ),
        )


def _joined(offsets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.cumsum(np.concatenate([[0], *map(np.diff, offsets)]), dtype=np.int64)


def _joined_slots(windows: Sequence[CollatedRecords]) -> NDArray[np.int64] | None:
    if all(collated.slots_P is None for collated in windows):
        return None
    return np.concatenate([slots_of(collated) for collated in windows])


def slots_of(windows: CollatedRecords) -> NDArray[np.int64]:
    """Which of its window's slots each position stands in, [P]."""
    if windows.slots_P is not None:
        return windows.slots_P
    counts_W = np.diff(windows.position_offsets_B1)
    # The last ones: a window has one token more than slots.
    first_W = np.diff(windows.token_offsets_B1) - 1 - counts_W
    slots_P: NDArray[np.int64] = np.arange(int(counts_W.sum())) + np.repeat(
        first_W - windows.position_offsets_B1[:-1], counts_W
    )
    return slots_P


def _concatenated(columns: Sequence[NDArray[Any] | None]) -> Any:
    """None where there is no such column; parts that are read together have the same ones."""
    present = [column for column in columns if column is not None]
    return np.concatenate(present) if present else None
