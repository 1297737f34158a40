"""What documents take in shards of a carrier, measured on real ones that nobody keeps.

Shape legend: D documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.carrier import Carrier
from logitcask_schemas.cask.format.columns import assemble
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cask.storage.hashing_sink import HashingSink
from logitcask_schemas.record.records import DocumentRecords

_IDENTITY: Final = "0" * 64
"""Of a cask that there is not; all have as many digits."""
_DOCUMENT_BYTES: Final = 32 + 8
"""Id and checksum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardBytes:
    """Of one shard of all documents."""

    total: int
    framing: float
    """What every shard has, however many documents it holds; 0 where there is one document alone, which cannot tell."""
    documents_D: NDArray[np.float64]
    """What is left, by document [D]."""


def shard_bytes(documents: Sequence[DocumentRecords], layout: RecordLayout, carrier: Carrier) -> ShardBytes:
    """Write shards of the documents to nowhere, and count.

    Two shards of half of the documents each are larger than one of all of them by the framing. The rest is shared out
    as the columns' sizes before they are compressed.

    Args:
        documents: at least one; equal ones count as often as they are given.
        layout: of a cask for them.
        carrier: file format.
    """
    total, framing = _size(documents, layout, carrier), 0.0
    if len(documents) > 1:
        halves = _size(documents[::2], layout, carrier) + _size(documents[1::2], layout, carrier)
        framing = float(min(max(halves - total, 0), total))
    sizes_D = np.array([_column_bytes(document, layout) for document in documents], dtype=np.float64)
    return ShardBytes(total=total, framing=framing, documents_D=sizes_D * ((total - framing) / sizes_D.sum()))


def _size(documents: Sequence[DocumentRecords], layout: RecordLayout, carrier: Carrier) -> int:
    sink = HashingSink(None)
    columns = assemble(documents, [document.id for document in documents], layout)
    carrier.write(columns, layout, _IDENTITY, sink)
    return sink.size


def _column_bytes(document: DocumentRecords, layout: RecordLayout) -> int:
    units, records = layout.bytes_per_unit, document.records
    return (
        _DOCUMENT_BYTES
        + units["token"] * len(document.token_ids_L)
        + units["position"] * records.num_positions
        + units["head"] * len(records.head_ids_H)
        + units["tail"] * len(records.tail_ids_N)
    )
