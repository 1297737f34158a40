"""The hints of a shard's documents, all rows end to end, without their file.

Shape legend: D documents, R rows of them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.hints import HintRows


@dataclass(frozen=True, slots=True, kw_only=True)
class HintColumns:
    """Rows of hints, cut into documents, which are those of a shard in its order."""

    checksums: NDArray[np.uint64]
    """xxh3-64 of each document's hints, see `hints_checksum`, [D]."""
    offsets: NDArray[np.int64]
    """Where each document's rows start and the last one's end, [D + 1]."""
    rows: HintRows

    @classmethod
    def of_documents(cls, parts: Sequence[HintRows], ids: Sequence[bytes]) -> "HintColumns":
        """Lay the documents' rows end to end.

        Args:
            parts: Checked, at least one.
            ids: The documents', 32 bytes each.

        Raises:
            InvalidRecordError: They are not all of one width.
        """
        if len(widths := {part.width for part in parts}) > 1:
            raise InvalidRecordError(f"hints of one cask are of one width, got documents of {sorted(widths)}")
        return cls(
            checksums=np.array(
                [hints_checksum(identity, part) for identity, part in zip(ids, parts, strict=True)], dtype=np.uint64
            ),
            offsets=np.cumsum([0, *(part.num_rows for part in parts)], dtype=np.int64),
            rows=HintRows.join(list(parts)),
        )

    def of(self, row: int) -> HintRows:
        """A document's rows, as views."""
        return self.rows.slice(slice(int(self.offsets[row]), int(self.offsets[row + 1])))

    @classmethod
    def gathered(cls, chosen: Sequence[tuple["HintColumns | None", int]]) -> "HintColumns | None":
        """Those of some documents, each its columns and its number there; None where one of them has none."""
        present = [(columns, row) for columns, row in chosen if columns is not None]
        if len(present) < len(chosen):
            return None
        parts = [columns.of(row) for columns, row in present]
        return cls(
            checksums=np.array([columns.checksums[row] for columns, row in present], dtype=np.uint64),
            offsets=np.cumsum([0, *(part.num_rows for part in parts)], dtype=np.int64),
            rows=HintRows.join(parts),
        )


def hints_checksum(document_id: bytes, rows: HintRows) -> int:
    """xxh3-64 over a document's hints as stored.

    Args:
        document_id: 32 bytes.
        rows: The document's; their number and width enter as little-endian u64.
    """
    digest = xxhash.xxh3_64(document_id + np.array([rows.num_rows, rows.width], dtype="<u8").tobytes())
    for array in rows.arrays.values():
        digest.update(_bytes_of(array))
    return int(digest.intdigest())


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
