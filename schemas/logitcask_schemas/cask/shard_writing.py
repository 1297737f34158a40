"""A shard's columns into a file, with the entry that describes it.

A shard is named once, by whoever writes it first, after its Arrow form: the first 32 hex digits of the SHA-256 of the
file that the Arrow carrier makes of the columns, whichever carrier stores them. An export keeps the name, and with the
names the order of the documents; run again it knows what is already there without reading it.
"""

import hashlib
from typing import Any, BinaryIO

from logitcask_schemas.cask.answers import AnswerCounts
from logitcask_schemas.cask.arrow_carrier import ArrowCarrier
from logitcask_schemas.cask.carrier import Carrier
from logitcask_schemas.cask.columns import ShardColumns
from logitcask_schemas.cask.layout import RecordLayout
from logitcask_schemas.manifest import ShardEntry


def write_shard(
    carrier: Carrier,
    columns: ShardColumns,
    layout: RecordLayout,
    identity: str,
    file: BinaryIO,
    *,
    name: str | None = None,
) -> ShardEntry:
    """Write a shard to an open file and describe it.

    Args:
        carrier: File format.
        columns: The shard.
        layout: Of its cask.
        identity: Of its cask.
        file: Open for writing.
        name: Which it already has; None for a new shard.

    Raises:
        CaskError: The format cannot hold a shard of this size.
        OSError: From the file, unchanged.
    """
    sink = _HashingSink(file)
    carrier.write(columns, layout, identity, sink)
    if name is None:
        arrow = sink
        if carrier.name != ArrowCarrier.name:
            arrow = _HashingSink(None)
            ArrowCarrier().write(columns, layout, identity, arrow)
        name = arrow.sha256.hexdigest()[:32]
    answers = columns.answers.counts() if columns.answers is not None else AnswerCounts()
    return ShardEntry(
        name=name,
        carrier=carrier.name,
        bytes=sink.size,
        sha256=sink.sha256.hexdigest(),
        identity=identity,
        documents=len(columns.document_ids),
        tokens=int(columns.offsets["token"][-1]),
        positions=int(columns.offsets["position"][-1]),
        head_entries=int(columns.offsets["head"][-1]),
        tail_entries=int(columns.offsets["tail"][-1]),
        answer_documents=answers.documents,
        answer_ranges=answers.ranges,
        answer_positions=answers.positions,
    )


class _HashingSink:
    """Hashes and counts what goes into a file, or nowhere."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    @property
    def closed(self) -> bool:
        return False if self._file is None else self._file.closed

    def write(self, data: Any, /) -> int:
        view = memoryview(data)
        self.sha256.update(view)
        if self._file is not None:
            self._file.write(view)
        self.size += view.nbytes
        return view.nbytes
