"""A shard whose documents are decoded when somebody reads them, some at a time.

Training reads the sequences of several shards mixed. Large shards that are decoded as a whole would then be decoded for
every few sequences, or all the mixed ones would lie decoded in memory. Here a shard that is open is a mapped file, and
what was decoded of all shards stays in memory within one limit of the process. Small shards, of which many fit, are
decoded as a whole by the first that reads one of their documents: that takes a fifth of the time of one by one.

Shape legend: D documents.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from logitcask_schemas.cask.carriers.packed import PackedFile
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.record.records import DocumentRecords

DECODED_BYTES: Final = 512 << 20
"""Of documents that a process keeps decoded; what was decoded last stays, however large."""


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Documents that were decoded together."""

    owner: "weakref.ReferenceType[LazyShard]"
    rows: Sequence[int]
    part: Shard
    bytes: int


class DecodedBlocks:
    """The blocks of a process, the least lately read first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._bytes = 0
        self.new_lock()

    def new_lock(self) -> None:
        """A forked child cannot use the lock: the thread that held it may not be there."""
        self._lock = threading.Lock()

    def add(self, block: _Block) -> None:
        """Keep a block, and let go of others beyond the limit."""
        with self._lock:
            self._blocks[id(block)] = block
            self._bytes += block.bytes
            while self._bytes > self.max_bytes and len(self._blocks) > 1:
                self._let_go()

    def touch(self, block: _Block) -> None:
        """A block was read."""
        with self._lock:
            if id(block) in self._blocks:  # else another thread has let it go
                self._blocks.move_to_end(id(block))

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            while self._blocks:
                self._let_go()

    def _let_go(self) -> None:
        _, oldest = self._blocks.popitem(last=False)
        self._bytes -= oldest.bytes
        if (owner := oldest.owner()) is not None:
            owner.forget(oldest)

    def __len__(self) -> int:
        return len(self._blocks)


SMALL_SHARE: Final = 16
"""A shard is small if so many like it fit into the limit: twice as many as training mixes."""
DECODED: Final = DecodedBlocks(DECODED_BYTES)
"""Of this process."""
os.register_at_fork(after_in_child=DECODED.new_lock)


class LazyShard(Shard):
    """As `Shard`; `columns` decodes everything, `read`, `read_window` and `append_window` the documents asked for.

    A document whose bits are no records is an error when it is read, not when the shard is opened.
    """

    def __init__(self, path: Path, entry: ShardEntry, layout: RecordLayout, file: PackedFile) -> None:
        self._file = file
        self._blocks: dict[int, tuple[_Block, int]] = {}
        """By document: the block that has it, and where in it."""
        self._whole: _Block | None = None
        self._faults: dict[int, int] = {}
        """What is wrong with the bits of documents that were decoded, see `fault`; only of those that have one."""
        self._decoded_bytes = sum(
            int(file.beside.offsets[column.level][-1]) * column.bytes_per_unit for column in layout.columns
        )
        super().__init__(path, entry, layout, file.beside)

    @property
    def columns(self) -> ShardColumns:
        """All documents decoded."""
        if (block := self._whole) is None:
            block = self._decode(range(self.num_documents))
        else:
            DECODED.touch(block)
        for row in sorted(self._faults):
            self._require_sound(row)
        return block.part.columns

    def prepare(self, rows: Sequence[int]) -> None:
        """Decode documents that will be read next, together, which is faster than one by one."""
        missing = sorted({row for row in rows if row not in self._blocks and 0 <= row < self.num_documents})
        if missing:
            self._decode(range(self.num_documents) if self._is_small else missing)

    @property
    def _is_small(self) -> bool:
        return self._decoded_bytes * SMALL_SHARE <= DECODED.max_bytes

    def forget(self, block: _Block) -> None:
        """The process let go of a block."""
        if self._whole is block:
            self._whole = None
        for row in block.rows:
            if (held := self._blocks.get(row)) is not None and held[0] is block:
                self._blocks.pop(row, None)

    def verify(self, row: int) -> None:
        """As `Shard.verify`."""
        part, number = self._part(row)
        part.verify(number)
        self._verified_D[row] = 1

    def append_window(
        self, row: int, start: int | None, stop: int | None, token_start: int | None, arrays: list[Any], cuts: list[Any]
    ) -> None:
        """As `Shard.append_window`."""
        part, number = self._proved(row)
        part.append_window(number, start, stop, token_start, arrays, cuts)

    def _read(self, row: int, start: int | None, stop: int | None) -> DocumentRecords:
        part, number = self._proved(row)
        return part._read(number, start, stop)

    def _proved(self, row: int) -> tuple[Shard, int]:
        """The part that has a document, which is proved on first touch."""
        part, number = self._part(row)
        if not self._verified_D[row]:
            part.verify(number)
            self._verified_D[row] = 1
        return part, number

    def _part(self, row: int) -> tuple[Shard, int]:
        if not 0 <= row < self.num_documents:
            raise IndexError(f"{self.path}: document {row} of {self.num_documents}")
        if (held := self._blocks.get(row)) is not None:
            block, number = held
            DECODED.touch(block)
        elif self._is_small:
            block, number = self._decode(range(self.num_documents)), row
        else:
            block, number = self._decode([row]), 0
        self._require_sound(row)
        return block.part, number

    def _decode(self, rows: Sequence[int]) -> _Block:
        columns, faults_D = self._file.decoded(rows)
        self._faults |= {rows[number]: int(faults_D[number]) for number in np.flatnonzero(faults_D).tolist()}
        part = Shard(self.path, self.entry, self.layout, columns, numbers=rows)
        part.mark_verified(number for number, row in enumerate(rows) if self._verified_D[row])
        size = sum(np.asarray(array).nbytes for array in columns.arrays.values())
        block = _Block(weakref.ref(self), rows, part, size)
        if len(rows) == self.num_documents:
            self._whole = block
        self._blocks.update((row, (block, number)) for number, row in enumerate(rows))
        DECODED.add(block)
        return block

    def _require_sound(self, row: int) -> None:
        if number := self._faults.get(row):
            raise self._file.fault_of(row, number)
