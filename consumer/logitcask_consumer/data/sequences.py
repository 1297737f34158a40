"""What a dataset hands to the collator: the records of some sequences, their windows end to end.

Shape legend: B sequences, W windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.collation import CollatedRecords
from logitcask_schemas.records import Records


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

    def __len__(self) -> int:
        """Number of windows, W."""
        return len(self.documents_W)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Several, at least one, as one; copies every column unless there is nothing to join."""
        if len(parts) == 1:
            return parts[0]
        windows = [part.windows for part in parts]
        columns = {name: [getattr(one.records, name) for one in windows] for name in Records.__dataclass_fields__}
        return cls(
            window_offsets_B1=_joined([part.window_offsets_B1 for part in parts]),
            documents_W=np.concatenate([part.documents_W for part in parts]),
            weights_P=_concatenated([part.weights_P for part in parts]),
            windows=CollatedRecords(
                token_ids_L=np.concatenate([one.token_ids_L for one in windows]),
                token_offsets_B1=_joined([one.token_offsets_B1 for one in windows]),
                position_offsets_B1=_joined([one.position_offsets_B1 for one in windows]),
                records=Records(**{name: _concatenated(values) for name, values in columns.items()}),
            ),
        )


def _joined(offsets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.cumsum(np.concatenate([[0], *map(np.diff, offsets)]), dtype=np.int64)


def _concatenated(columns: Sequence[NDArray[Any] | None]) -> Any:
    """None where there is no such column; parts that are read together have the same ones."""
    present = [column for column in columns if column is not None]
    return np.concatenate(present) if present else None
