"""One shard, opened: its columns as flat arrays, and single documents or windows of them as records.

Shape legend: D documents, L tokens of one, P = L - 1 positions; H and N entries of head and tail. Values in nats.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.documents import ShardDocuments
from logitcask_schemas.cask.format.codec_u8 import decode_u8
from logitcask_schemas.cask.format.columns import (
    ColumnArray,
    Offsets,
    ShardColumns,
    document_checksum,
    document_slices,
    join_planes,
)
from logitcask_schemas.cask.format.layout import HIGH_SUFFIX, LEVELS, RecordLayout
from logitcask_schemas.cask.format.lists import ShardLists
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.storage.files import unreadable
from logitcask_schemas.errors import CaskCorruptionError, DocumentMismatchError
from logitcask_schemas.record.extent import Extent, IdArray
from logitcask_schemas.record.records import DocumentRecords, LogprobArray, Records


class Shard:
    """A shard as flat columns; with the Arrow carrier they are views of the mapped file.

    `read` and `read_window` prove a document's checksum the first time they touch it; `columns` are as they lie there.
    """

    def __init__(
        self,
        path: Path,
        entry: ShardEntry,
        layout: RecordLayout,
        columns: ShardColumns,
        *,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Take the columns of a file.

        Args:
            path: The file.
            entry: Of the shard.
            layout: Of the cask.
            columns: Of all documents, or of some.
            numbers: Of some: their numbers in the shard, for messages.

        Raises:
            CaskCorruptionError: The columns of all documents have other sizes than the entry says.
        """
        if numbers is None:
            _require_announced(path, entry, columns)
        self.path = path
        self.entry = entry
        self.layout = layout
        self._columns = columns
        self._numbers = numbers
        # Where each document starts in the columns of each level, end to end: one lookup instead of four, and a
        # memoryview because slicing it takes a third of the time of an array.
        self._cuts = np.stack([columns.offsets[level] for level in LEVELS], axis=1).reshape(-1).data
        self._wide_ids = layout.wide_ids
        self._sliceable = [
            _sliceable(columns.arrays[column.name]) for column in layout.columns if column.name in columns.arrays
        ]
        self._of_columns = itemgetter(*(LEVELS.index(column.level) for column in layout.columns))
        """From one thing per level to one per column."""
        # A bytearray, because looking up one element is several times as fast as in an array.
        self._verified_D = bytearray(len(columns.document_ids))

    @property
    def columns(self) -> ShardColumns:
        """All columns, as they lie there."""
        return self._columns

    @property
    def lists(self) -> ShardLists:
        """What its documents say beside their records."""
        return self._columns.lists

    def mark_verified(self, rows: Iterable[int]) -> None:
        """Documents of which somebody has proved these very bytes."""
        for row in rows:
            self._verified_D[row] = 1

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self._verified_D)

    @property
    def token_offsets(self) -> Offsets:
        """[D + 1] into `token_ids`."""
        return self._columns.offsets["token"]

    @property
    def position_offsets(self) -> Offsets:
        """[D + 1] into every column with one value per position."""
        return self._columns.offsets["position"]

    @property
    def document_ids(self) -> NDArray[np.uint8]:
        """[D, 32] SHA-256 of each document's token ids."""
        return self._columns.document_ids

    @property
    def documents(self) -> ShardDocuments:
        """Ids and lengths of its documents."""
        return ShardDocuments(ids=self.document_ids, lengths=np.diff(self.token_offsets))

    def require_size(self) -> None:
        """Require of the file, which may have been opened long ago, that it still has its size.

        Reading what a mapped file has lost ends the process (SIGBUS), so whoever is about to read much asks before.
        A file without its name stays readable as it was.

        Raises:
            CaskCorruptionError: It has another size.
            CaskReadError: The operating system does not say.
        """
        try:
            size = self.path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise unreadable(self.path, error) from error
        if size != self.entry.bytes:
            raise CaskCorruptionError(
                f"{self.path}: shard {self.entry.name} should have {self.entry.bytes} bytes, by now it has {size}. "
                "Stop what writes to it, and restore the file from a copy of the cask or run `logitcask cask repair`."
            )

    def answer_ranges(self, row: int) -> NDArray[np.uint32] | None:
        """Which tokens of a document are answers, see `DocumentRecords.answer_ranges_R2`; `verify` proves them."""
        return self.lists.answer_ranges(row)

    def extent(self, row: int) -> Extent:
        """Which positions of a document have records, and under which context; `verify` proves it."""
        return self.lists.extent(row)

    def read(self, row: int) -> DocumentRecords:
        """One whole document.

        Args:
            row: 0 to D - 1.

        Returns:
            The document; arrays are views of the shard, except ids joined from two planes and decoded `u8`.

        Raises:
            IndexError: No such row.
            CaskCorruptionError: The document's bytes do not give its checksum (checked on first touch only).
        """
        return self._read(row, None, None)

    def read_window(self, row: int, start: int, stop: int) -> DocumentRecords:
        """Positions [start, stop) of a document, with the tokens [start, stop] that they speak of.

        Records are those of the positions among them that have one.

        Raises:
            IndexError: No such row, or a window that is empty or leaves the document.
            CaskCorruptionError: As `read`; the whole document is proved, not only the window.
        """
        return self._read(row, start, stop)

    def append_window(
        self, row: int, start: int | None, stop: int | None, token_start: int | None, arrays: list[Any], cuts: list[Any]
    ) -> None:
        """Append every stored column, in the order of the layout, and beside it the slice that a window has of it.

        Args:
            row: 0 to D - 1.
            start: First position; None for 0.
            stop: One past the last position; None for the document's end.
            token_start: First token, at most `start`; None for `start`. The last token is number `stop`.
            arrays: Takes the columns; a slice of one is bytes to join, its len the number of values.
            cuts: Takes the slices.

        Raises:
            IndexError, CaskCorruptionError: As `read_window`.
        """
        cuts += self._of_columns(self._span(row, start, stop, token_start))
        arrays += self._sliceable

    def _span(
        self, row: int, start: int | None = None, stop: int | None = None, token_start: int | None = None
    ) -> list[slice]:
        """Where a window of a document, proved on first touch, lies in the columns of each level."""
        if not 0 <= row < len(self._verified_D):
            raise IndexError(f"{self.path}: document {self._number(row)} of {self.num_documents}")
        if not self._verified_D[row]:
            self.verify(row)
        cuts = self._cuts[4 * row : 4 * row + 8].tolist()
        if start is None and stop is None and token_start is None:
            return list(map(slice, cuts, cuts[4:]))
        begin, end = cuts[:4], cuts[4:]
        length = end[0] - begin[0] - 1
        first, last = start or 0, length if stop is None else stop
        context = first if token_start is None else token_start
        if not 0 <= context <= first < last <= length:
            raise IndexError(
                f"{self.path}: window [{first}, {last}) of document {self._number(row)}, its tokens from {context} on; "
                f"the document has {length} positions"
            )
        if last - first < length:
            extent = self.extent(row)
            above, below = extent.rows_before(first), extent.rows_before(last)
            head = self._entries("head_counts", begin[1], end[1], above, below, begin[2], end[2])
            tail = self._entries("tail_counts", begin[1], end[1], above, below, begin[3], end[3])
            begin, end = (
                [begin[0] + context, begin[1] + above, head[0], tail[0]],
                [begin[0] + last + 1, begin[1] + below, head[1], tail[1]],
            )
        return list(map(slice, begin, end))

    def _number(self, row: int) -> int:
        """A document's number in the shard."""
        return row if self._numbers is None else self._numbers[row]

    def verify(self, row: int) -> None:
        """Prove a document's bytes against its checksum and its counts against its columns, every time.

        Raises:
            CaskCorruptionError: They disagree; names shard, document, and both values.
        """
        columns = self._columns
        slices = document_slices(columns.arrays, columns.offsets, self.layout, row, columns.lists)
        sizes = [int(columns.offsets[level][row + 1] - columns.offsets[level][row]) for level in LEVELS]
        identity = columns.document_ids[row].tobytes()
        computed, stored = document_checksum(identity, sizes, slices), int(columns.checksums[row])
        where = f"{self.path}: document {self._number(row)} ({identity.hex()[:16]})"
        if computed != stored:
            raise CaskCorruptionError(
                f"{where}: stored checksum {stored:016x}, its bytes give {computed:016x}. "
                "Run `logitcask cask verify` to see what else is damaged, then capture the document again."
            )
        by_name = dict(zip((column.name for column in self.layout.columns), slices, strict=False))
        for name, entries in (("head_counts", sizes[2]), ("tail_counts", sizes[3])):
            if (total := int(by_name[name].sum(dtype=np.int64))) != entries:
                raise CaskCorruptionError(f"{where}: {name} add up to {total}, the document has {entries} entries")
        if sizes[1] != (expected := self.extent(row).num_positions(sizes[0])):
            raise CaskCorruptionError(f"{where}: {sizes[0]} tokens, {expected} recorded positions, {sizes[1]} records")
        self._verified_D[row] = 1

    def _read(self, row: int, start: int | None, stop: int | None) -> DocumentRecords:
        arrays = self._columns.arrays
        tokens, positions, head, tail = self._span(row, start, stop)
        draws = self._values("tail_logprobs", tail) if "tail_logprobs" in arrays else None
        try:
            return DocumentRecords(
                token_ids_L=self._ids("token_ids", tokens),
                records=Records(
                    head_counts_P=arrays["head_counts"][positions],
                    head_ids_H=self._ids("head_ids", head),
                    head_logprobs_H=self._values("head_logprobs", head),
                    tail_counts_P=arrays["tail_counts"][positions],
                    tail_ids_N=self._ids("tail_ids", tail),
                    position_columns={name: self._values(name, positions) for name in self.layout.position_columns},
                    tail_logprobs_N=draws,
                ),
                answer_ranges_R2=self._answer_ranges(row, start, tokens.stop - tokens.start),
                extent=self.extent(row) if start is None or stop is None else self.extent(row).window(start, stop),
            )
        except DocumentMismatchError as error:
            raise CaskCorruptionError(f"{self.path}: document {self._number(row)}: {error}") from error

    def _answer_ranges(self, row: int, first: int | None, length: int) -> NDArray[np.uint32] | None:
        """Of so many tokens from `first` on, counted from it; None for the whole document."""
        ranges_R2 = self.answer_ranges(row)
        if ranges_R2 is None or first is None:
            return ranges_R2
        clipped_R2 = np.clip(ranges_R2, first, first + length) - np.uint32(first)
        return clipped_R2[clipped_R2[:, 0] < clipped_R2[:, 1]]

    def _entries(
        self, counts: str, begin: int, end: int, first: int, last: int, start: int, stop: int
    ) -> tuple[int, int]:
        """Which of a document's entries [start, stop) belong to its positions [first, last).

        Counts are added up from the nearer end of the document, whose flat positions are [begin, end).
        """
        array = self._columns.arrays[counts]
        inside = _total(array[begin + first : begin + last])
        if 2 * first <= end - begin - (last - first):
            start += _total(array[begin : begin + first])
        else:
            start = stop - _total(array[begin + last : end]) - inside
        return start, start + inside

    def _ids(self, name: str, span: slice) -> IdArray:
        arrays = self._columns.arrays
        low: IdArray = arrays[name][span]
        return join_planes(low, arrays[name + HIGH_SUFFIX][span]) if self._wide_ids else low

    def _values(self, name: str, span: slice) -> LogprobArray:
        stored: NDArray[Any] = self._columns.arrays[name][span]
        return decode_u8(stored, name) if name in self.layout.coded else stored


def _require_announced(path: Path, entry: ShardEntry, columns: ShardColumns) -> None:
    """Require of columns that they hold as much as the entry says."""
    for member, count in columns.lists.counts().items():
        if count != (expected := getattr(entry, member)):
            raise CaskCorruptionError(
                f"{path}: {member} is {count}; its entry says {expected}. Run `logitcask cask verify`."
            )
    counts = (len(columns.document_ids), *(int(columns.offsets[level][-1]) for level in LEVELS))
    announced = (entry.documents, entry.tokens, entry.positions, entry.head_entries, entry.tail_entries)
    if counts != announced:
        raise CaskCorruptionError(
            f"{path}: holds {counts} documents, tokens, positions, head entries and tail draws; its entry says "
            f"{announced}. Run `logitcask cask verify`."
        )


def _sliceable(array: ColumnArray) -> Any:
    """What a slice of it is bytes to join: a memoryview slices in half the time of an array."""
    return array.data if isinstance(array, np.ndarray) and array.ndim == 1 else array


def _total(counts: NDArray[np.uint8]) -> int:
    # 32 bits add up twice as fast as 64, and hold the sum of 2^24 counts.
    return int(np.add.reduce(counts, dtype=np.uint32 if len(counts) < 1 << 24 else np.uint64))
