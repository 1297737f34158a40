"""One shard, opened: its columns as flat arrays, and single documents or windows of them as records.

Shape legend: D documents, L tokens of one, P = L - 1 positions; H and N entries of head and tail. Values in nats.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.codec_u8 import decode_u8
from logitcask_schemas.cask.columns import Offsets, ShardColumns, document_checksum, document_slices, join_planes
from logitcask_schemas.cask.layout import HIGH_SUFFIX, LEVELS, RecordLayout
from logitcask_schemas.errors import CaskCorruptionError, DocumentMismatchError
from logitcask_schemas.manifest import ShardEntry
from logitcask_schemas.records import DocumentRecords, IdArray, LogprobArray, Records


class Shard:
    """A shard as flat columns; with the Arrow carrier they are views of the mapped file.

    The flat properties are unverified; `read` and `read_window` prove a document's checksum the first time they touch
    it. Ids of a vocabulary above 65,536 lie in two planes and are joined to uint32 on access: take them by document
    (`read`) rather than whole (`head_ids`), unless the whole shard is wanted.
    """

    def __init__(self, path: Path, entry: ShardEntry, layout: RecordLayout, columns: ShardColumns) -> None:
        found = (len(columns.document_ids), *(int(columns.offsets[level][-1]) for level in LEVELS))
        announced = (entry.documents, entry.tokens, entry.positions, entry.head_entries, entry.tail_entries)
        if found != announced:
            raise CaskCorruptionError(
                f"{path}: holds {found} documents, tokens, positions, head entries and tail draws; its entry says "
                f"{announced}. Run `logitcask cask verify`."
            )
        self.path = path
        self.entry = entry
        self.layout = layout
        self.columns = columns
        self.token_offsets: Offsets = columns.offsets["token"]
        """[D + 1] into `token_ids`."""
        self.position_offsets: Offsets = columns.offsets["position"]
        """[D + 1] into every column with one value per position."""
        self.head_offsets: Offsets = columns.offsets["head"]
        """[D + 1] into `head_ids` and `head_logprobs`."""
        self.tail_offsets: Offsets = columns.offsets["tail"]
        """[D + 1] into `tail_ids` and `tail_logprobs`."""
        self._wide_ids = layout.wide_ids
        self._verified_D = np.zeros(entry.documents, dtype=np.bool_)

    @property
    def num_documents(self) -> int:
        """D."""
        return self.entry.documents

    @property
    def document_ids(self) -> NDArray[np.uint8]:
        """[D, 32] SHA-256 of each document's token ids."""
        return self.columns.document_ids

    @property
    def token_ids(self) -> IdArray:
        """Token ids of all documents, uint16 or uint32."""
        return self._ids("token_ids", 0, self.entry.tokens)

    @property
    def head_counts(self) -> NDArray[np.uint8]:
        """Head entries per position."""
        return self._whole("head_counts")

    @property
    def head_ids(self) -> IdArray:
        """Head token ids, uint16 or uint32."""
        return self._ids("head_ids", 0, self.entry.head_entries)

    @property
    def head_logprobs(self) -> LogprobArray:
        """Log t of the head entries."""
        return self._logprobs("head_logprobs", 0, self.entry.head_entries)

    @property
    def tail_counts(self) -> NDArray[np.uint8]:
        """Tail draws per position."""
        return self._whole("tail_counts")

    @property
    def tail_ids(self) -> IdArray:
        """Drawn token ids, uint16 or uint32."""
        return self._ids("tail_ids", 0, self.entry.tail_entries)

    @property
    def log_tail_mass(self) -> LogprobArray:
        """Log r per position."""
        return self._whole("log_tail_mass")

    @property
    def entropy(self) -> LogprobArray:
        """H(t) per position."""
        return self._whole("entropy")

    @property
    def tail_logprobs(self) -> LogprobArray | None:
        """Log t of the tail draws, where the capture spec stores them."""
        if not self.layout.has("tail_logprobs"):
            return None
        return self._logprobs("tail_logprobs", 0, self.entry.tail_entries)

    @property
    def log_z(self) -> LogprobArray | None:
        """Log Z_T, [positions, T], where the capture spec stores temperatures."""
        return self._whole("log_z") if self.layout.has("log_z") else None

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
        self._require_row(row)
        offsets = self.position_offsets
        return self._read(row, 0, offsets.item(row + 1) - offsets.item(row))

    def read_window(self, row: int, start: int, stop: int) -> DocumentRecords:
        """Positions [start, stop) of a document, with the tokens [start, stop] that they speak of.

        Raises:
            IndexError: No such row, or a window that is empty or leaves the document.
            CaskCorruptionError: As `read`; the whole document is proved, not only the window.
        """
        self._require_row(row)
        length = self.position_offsets.item(row + 1) - self.position_offsets.item(row)
        if not 0 <= start < stop <= length:
            raise IndexError(f"{self.path}: window [{start}, {stop}) of document {row}, which has {length} positions")
        return self._read(row, start, stop)

    def verify(self, row: int) -> None:
        """Prove a document's bytes against its checksum and its counts against its columns, every time.

        Raises:
            CaskCorruptionError: They disagree; names shard, document, and both values.
        """
        columns = self.columns
        slices = document_slices(columns.arrays, columns.offsets, self.layout, row)
        sizes = [int(columns.offsets[level][row + 1] - columns.offsets[level][row]) for level in LEVELS]
        identity = columns.document_ids[row].tobytes()
        computed, stored = document_checksum(identity, sizes, slices), int(columns.checksums[row])
        where = f"{self.path}: document {row} ({identity.hex()[:16]})"
        if computed != stored:
            raise CaskCorruptionError(
                f"{where}: stored checksum {stored:016x}, its bytes give {computed:016x}. "
                "Run `logitcask cask verify` to see what else is damaged, then capture the document again."
            )
        by_name = dict(zip((column.name for column in self.layout.columns), slices, strict=True))
        for name, entries in (("head_counts", sizes[2]), ("tail_counts", sizes[3])):
            if (total := int(by_name[name].sum(dtype=np.int64))) != entries:
                raise CaskCorruptionError(f"{where}: {name} add up to {total}, the document has {entries} entries")
        if sizes[0] != sizes[1] + 1:
            raise CaskCorruptionError(f"{where}: {sizes[0]} tokens and {sizes[1]} positions")
        self._verified_D[row] = True

    def _require_row(self, row: int) -> None:
        if not 0 <= row < self.num_documents:
            raise IndexError(f"{self.path}: document {row} of {self.num_documents}")
        if not self._verified_D[row]:
            self.verify(row)

    def _read(self, row: int, start: int, stop: int) -> DocumentRecords:
        arrays = self.columns.arrays
        first_token = self.token_offsets.item(row) + start
        first = self.position_offsets.item(row) + start
        last = first + stop - start
        head, head_stop = self._entries("head_counts", self.head_offsets, row, start, first, last)
        tail, tail_stop = self._entries("tail_counts", self.tail_offsets, row, start, first, last)
        draws = self._logprobs("tail_logprobs", tail, tail_stop) if "tail_logprobs" in arrays else None
        try:
            return DocumentRecords(
                token_ids_L=self._ids("token_ids", first_token, first_token + stop - start + 1),
                records=Records(
                    head_counts_P=arrays["head_counts"][first:last],
                    head_ids_H=self._ids("head_ids", head, head_stop),
                    head_logprobs_H=self._logprobs("head_logprobs", head, head_stop),
                    tail_counts_P=arrays["tail_counts"][first:last],
                    tail_ids_N=self._ids("tail_ids", tail, tail_stop),
                    log_tail_mass_P=arrays["log_tail_mass"][first:last],
                    entropy_P=arrays["entropy"][first:last],
                    tail_logprobs_N=draws,
                    log_z_PT=arrays["log_z"][first:last] if "log_z" in arrays else None,
                ),
            )
        except DocumentMismatchError as error:
            raise CaskCorruptionError(f"{self.path}: document {row}: {error}") from error

    def _entries(self, counts: str, offsets: Offsets, row: int, start: int, first: int, last: int) -> tuple[int, int]:
        """Where the entries of the flat positions [first, last) of a document start and stop."""
        stop = offsets.item(row + 1)
        if not start and last == self.position_offsets.item(row + 1):
            return offsets.item(row), stop
        array = self.columns.arrays[counts]
        begin = offsets.item(row) + int(array[first - start : first].sum(dtype=np.int64))
        return begin, begin + int(array[first:last].sum(dtype=np.int64))

    def _ids(self, name: str, start: int, stop: int) -> IdArray:
        arrays = self.columns.arrays
        low: IdArray = arrays[name][start:stop]
        return join_planes(low, arrays[name + HIGH_SUFFIX][start:stop]) if self._wide_ids else low

    def _logprobs(self, name: str, start: int, stop: int) -> LogprobArray:
        stored: NDArray[Any] = self.columns.arrays[name][start:stop]
        return decode_u8(stored) if name in self.layout.coded else stored

    def _whole(self, name: str) -> NDArray[Any]:
        array = self.columns.arrays[name]
        whole: NDArray[Any] = array[0 : len(array)]
        return whole
