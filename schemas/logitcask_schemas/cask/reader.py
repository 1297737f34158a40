"""Reading a cask: documents by number or id, shards as flat columns."""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers import carrier_of
from logitcask_schemas.cask.document_index import DocumentIndex
from logitcask_schemas.cask.index import read_entries, read_manifest, require_identity
from logitcask_schemas.cask.layout import RecordLayout
from logitcask_schemas.cask.opening import open_shard
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.manifest import CaskManifest, ShardEntry
from logitcask_schemas.records import DocumentRecords

MAX_OPEN_SHARDS: Final = 4096
"""Mapped at once per process; Linux allows 65,530 mappings. An evicted shard stays mapped while a view of it lives."""


class Cask:
    """The shards of a cask as they were when it was opened; documents are numbered by shard name, then by row.

    Nothing is read before it is asked for. Works in forked and in spawned workers: a pickled cask carries its list of
    shards, so every worker numbers documents alike even while writers publish, and maps shards in its own process.
    """

    def __init__(self, path: Path, manifest: CaskManifest, entries: list[ShardEntry]) -> None:
        """Use `open`."""
        self.path = path
        self.manifest = manifest
        self.entries = entries
        self.layout = RecordLayout.of(manifest)
        # A list, not an array: bisecting it for a single document is ten times as fast.
        self._starts = list(accumulate((entry.documents for entry in entries), initial=0))
        self._open: dict[int, Shard] = {}
        self._lengths_D: NDArray[np.int64] | None = None
        self._index: DocumentIndex | None = None

    @classmethod
    def open(cls, path: Path, *, tokenizer_fingerprint: str | None = None) -> Self:
        """Open a cask by reading its manifest and index; no shard is touched.

        Args:
            path: The cask's directory.
            tokenizer_fingerprint: Of the tokenizer that the records will be used with; None skips the check.

        Raises:
            CaskNotFoundError: There is no cask.
            CaskCorruptionError: Manifest, index or an entry is damaged, or a shard is foreign.
            IdentityMismatchError: The cask was made with another tokenizer.
        """
        path = Path(path)
        manifest = read_manifest(path)
        stored = manifest.teacher.tokenizer_fingerprint
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != stored:
            raise IdentityMismatchError(
                f"{path}: tokenizer_fingerprint: {stored!r} in the cask, {tokenizer_fingerprint!r} offered. The ids of "
                f"this cask mean other tokens there; use the tokenizer of {manifest.teacher.model!r}."
            )
        indexed, loose = read_entries(path)
        entries = sorted([*indexed.values(), *loose.values()], key=lambda entry: entry.name)
        require_identity(path, entries, manifest)
        return cls(path, manifest, entries)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def num_tokens(self) -> int:
        """Sum of document lengths."""
        return sum(entry.tokens for entry in self.entries)

    @property
    def num_positions(self) -> int:
        """Sum of L - 1 over the documents."""
        return sum(entry.positions for entry in self.entries)

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(entry.bytes for entry in self.entries)

    def document_lengths(self) -> NDArray[np.int64]:
        """Tokens per document, [D]. Opens every shard once, reads only its offsets."""
        if self._lengths_D is None:
            parts = [np.diff(self.shard(number).token_offsets) for number in range(len(self.entries))]
            self._lengths_D = np.concatenate([np.empty(0, np.int64), *parts])
        return self._lengths_D

    def document_ids(self) -> NDArray[np.uint8]:
        """SHA-256 of every document's token ids, [D, 32]. Opens every shard once."""
        parts = [self.shard(number).document_ids for number in range(len(self.entries))]
        return np.concatenate([np.empty((0, 32), np.uint8), *parts])

    def find(self, document_id: bytes) -> int | None:
        """The number of a document by its 32-byte id, or None. The first call reads all ids."""
        if self._index is None:
            index = DocumentIndex()
            index.add(self.document_ids(), np.arange(len(self), dtype=np.int64))
            self._index = index
        return self._index.find(document_id)

    def locate(self, index: int) -> tuple[int, int]:
        """Shard number and row of a document; IndexError where there is none."""
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"{self.path}: document {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def read(self, index: int) -> DocumentRecords:
        """One document; arrays are views of the mapped shard, value dtype as stored, ids uint16 or uint32.

        Raises:
            IndexError: No such document.
            CaskNotFoundError, CaskCorruptionError: Its shard is missing or damaged, or its checksum does not match
                (checked the first time that this process touches the document).
        """
        number, row = self.locate(index)
        return self.shard(number).read(row)

    def read_window(self, index: int, start: int, stop: int) -> DocumentRecords:
        """Positions [start, stop) of a document with tokens [start, stop]; errors as `read`."""
        number, row = self.locate(index)
        return self.shard(number).read_window(row, start, stop)

    def shard(self, number: int) -> Shard:
        """A shard, mapped; the least lately opened beyond `MAX_OPEN_SHARDS` are let go.

        Raises:
            IndexError: No such shard.
            CaskNotFoundError, CaskCorruptionError: Its file is missing or is not what the entry says.
        """
        if (shard := self._open.get(number)) is not None:
            return shard
        if not 0 <= number < len(self.entries):
            raise IndexError(f"{self.path}: shard {number} of {len(self.entries)}")
        shard = open_shard(self.path, self.entries[number], self.layout)
        # No lock: a second thread at worst maps a shard twice, and a lock held at a fork would hang the child.
        self._open[number] = shard
        if len(self._open) > min(MAX_OPEN_SHARDS, carrier_of(self.entries[number]).max_open):
            self._open.pop(next(iter(self._open)), None)
        return shard

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest, "entries": self.entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["manifest"], state["entries"])  # type: ignore[misc]
