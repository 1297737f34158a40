"""Reading a cask: documents by number or id, shards as flat columns."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.batches import CollatedRecords, Windows, collate
from logitcask_schemas.cask.carriers.registry import carrier_of
from logitcask_schemas.cask.directory import read_manifest, require_identity
from logitcask_schemas.cask.documents import DocumentIndex, DocumentTable, ShardDocuments
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_file import HintFile
from logitcask_schemas.cask.hint_reader import HintReader
from logitcask_schemas.cask.location import Location, location_of
from logitcask_schemas.cask.opening import open_shard
from logitcask_schemas.cask.remote_cache import Progress
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.address_space import crowded
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.records import DocumentRecords

MAX_OPEN_SHARDS: Final = 4096
"""Mapped at once per process; Linux allows 65,530 mappings. An evicted shard stays mapped while a view of it lives."""
_DOCUMENTS_AT_A_TIME: Final = 256
"""Shards of which ids and lengths are read together, which a store answers at once."""
MAX_OPEN_DOCUMENTS: Final = 1 << 20
"""Of all open shards together, on average; an open shard keeps about 80 bytes of memory per document of any length."""


class Cask:
    """The shards of a cask as they were when it was opened; documents are numbered by shard name, then by row.

    Nothing is read before it is asked for. Works in forked and in spawned workers: a pickled cask carries its list of
    shards, so every worker numbers documents alike even while writers publish, and maps shards in its own process.
    """

    def __init__(self, location: Location, manifest: CaskManifest, entries: list[ShardEntry]) -> None:
        """Use `open`."""
        self.location = location
        self.path = location.folder
        """Where its shards are opened: of a cask in a store, the folder of its cache."""
        self.manifest = manifest
        self.entries = entries
        self.layout = RecordLayout.of(manifest)
        # A list, not an array: bisecting it for a single document is ten times as fast.
        self._starts = list(accumulate((entry.documents for entry in entries), initial=0))
        self._open: dict[int, Shard] = {}
        self._hints = HintReader(location, manifest, entries)
        self._lengths_D: NDArray[np.int64] | None = None
        self._index: DocumentIndex | DocumentTable | None = None
        self._table: DocumentTable | None = None
        self._looked_for_table = False

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        tokenizer_fingerprint: str | None = None,
        cache: Path | None = None,
        cache_bytes: int | None = None,
        store_options: Mapping[str, Any] | None = None,
    ) -> "Cask":
        """Open a cask by reading its manifest and index; no shard is touched.

        Args:
            path: The cask's directory, or its URL in an object store ("s3://bucket/folder"; needs the extra `remote`).
            tokenizer_fingerprint: Of the tokenizer that the records will be used with; None skips the check.
            cache: For a URL: local folder for fetched shards.
            cache_bytes: For a URL: bytes to keep there at most; None: `location.CACHE_BYTES`.
            store_options: For a URL: see `RemoteStore`.

        Raises:
            CaskNotFoundError: There is no cask.
            CaskCorruptionError: Manifest, index or an entry is damaged, or a shard is foreign.
            IdentityMismatchError: The cask was made with another tokenizer.
            CaskError: A URL without a cache, or a store that does not answer.
            MissingExtraError: The client of this kind of store is not installed.
        """
        location = location_of(path, cache=cache, cache_bytes=cache_bytes, options=store_options)
        manifest = read_manifest(location.directory)
        stored = manifest.teacher.tokenizer_fingerprint
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != stored:
            raise IdentityMismatchError(
                f"{location.directory.place}: tokenizer_fingerprint: {stored!r} in the cask, {tokenizer_fingerprint!r} "
                "offered. The ids of this cask mean other tokens there; use the tokenizer of "
                f"{manifest.teacher.model!r}."
            )
        entries = location.read_listing().entries
        require_identity(location.directory.place, entries, manifest)
        return cls(location, manifest, entries)

    @property
    def place(self) -> str:
        """Where it is, for people: its folder, or its URL."""
        return self.location.directory.place

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
        """Tokens per document, [D]; from the cask's table of documents, opening only shards that it does not list.

        Whoever asks for them is about to plan a pass over the cask, so missing and truncated files are noticed now.

        Raises:
            CaskNotFoundError: A shard's file is missing.
            CaskCorruptionError: A shard's file has another size, or the table or a shard that is opened is damaged.
        """
        if self._lengths_D is None:
            self.location.require_shards(self.entries)
            if (table := self._whole_table()) is not None:
                self._lengths_D = table.lengths.astype(np.int64)
            else:
                parts = [documents.lengths for documents in self.shard_documents()]
                self._lengths_D = np.concatenate([np.empty(0, np.int64), *parts])
        return self._lengths_D

    def document_ids(self) -> NDArray[np.uint8]:
        """SHA-256 of every document's token ids, [D, 32]; a view where the table lists exactly this cask's shards."""
        if (table := self._whole_table()) is not None:
            return table.ids
        return np.concatenate([np.empty((0, 32), np.uint8), *(documents.ids for documents in self.shard_documents())])

    def find(self, document_id: bytes) -> int | None:
        """The number of a document by its 32-byte id, or None.

        A binary search in the table of documents; where the table does not list exactly this cask's shards (a writer
        has not closed yet), the first call reads all ids.
        """
        if self._index is None:
            self._index = self._whole_table()
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

    @property
    def has_hints(self) -> bool:
        """Whether every shard still has the file of hints that the spec asks for; their files are not looked at."""
        return self._hints.has_all

    def require_hints(self) -> None:
        """Require that every shard has its hints, of whoever is about to read them all; no file is opened.

        Raises:
            HintsDroppedError: The cask's spec has no hints, or a shard has no file of them any more.
            CaskNotFoundError: A file is missing.
            CaskCorruptionError: A file has another size.
        """
        self._hints.require_all()

    def hints(self, document: int, start: int | None = None, stop: int | None = None) -> HintRows:
        """What is kept of the teacher beside its distributions, for one document; views of the mapped file.

        Args:
            document: Its number.
            start: First position; None for 0.
            stop: One past the last position; None for the document's end.

        Returns:
            The rows of the recorded positions in [start, stop), as `read_window` has their records; of a spec with
            `positions` "last" the document's one row, whatever the window.

        Raises:
            IndexError: No such document, or a window that leaves it.
            HintsDroppedError: The cask's spec has no hints, or the shard has no file of them any more.
            CaskNotFoundError, CaskCorruptionError: The shard or its file of hints is missing or damaged, or the
                document's checksum does not match (checked the first time that this process touches its hints).
        """
        number, row = self.locate(document)
        return self._hints.rows(self.shard(number), number, row, start, stop, where=f"document {document}")

    def hint_file(self, number: int) -> HintFile:
        """The file of hints beside a shard, mapped; errors as `hints`."""
        return self._hints.file(number)

    def columns_with_hints(self, number: int) -> ShardColumns:
        """A shard's columns for whoever stores its documents elsewhere: with their hints, proved, where it has some.

        Raises:
            CaskNotFoundError, CaskCorruptionError: As `hints`.
        """
        return self._hints.with_columns(self.shard(number), number)

    def collate(
        self,
        documents: Windows,
        starts: Windows | None = None,
        stops: Windows | None = None,
        *,
        token_starts: Windows | None = None,
    ) -> CollatedRecords:
        """Several documents, or one window of each, end to end: each column is copied once, straight from the maps.

        The arrays are the caller's own, so that `torch.from_numpy` takes them as they are.

        Args:
            documents: Numbers of documents; a number may occur more than once.
            starts: First position of each window; None for 0.
            stops: One past the last position of each window, of which the tokens up to and including number `stop` are
                given; None for the documents' ends.
            token_starts: First token of each window, at most its first position: tokens before that give context to
                positions whose records are not asked for. None for the first positions.

        Raises:
            IndexError: No such document, or a window that is empty or leaves its document.
            CaskNotFoundError, CaskCorruptionError: As `read`.
        """
        rows = [(self.shard(number), row) for number, row in map(self.locate, documents)]
        return collate(rows, self.layout, starts, stops, token_starts)

    def shard(self, number: int) -> Shard:
        """A shard, mapped; the least lately opened beyond `MAX_OPEN_SHARDS` or `MAX_OPEN_DOCUMENTS` are let go.

        They are let go earlier where a limit is set on the process's address space, see `storage.address_space`.

        Raises:
            IndexError: No such shard.
            CaskNotFoundError, CaskCorruptionError: Its file is missing or is not what the entry says.
        """
        shard = self._open.get(number)
        return self.fetch(number) if shard is None else shard

    def fetch(self, number: int, progress: Progress | None = None) -> Shard:
        """As `shard`, telling how many bytes of it have come from a store."""
        if (shard := self._open.get(number)) is not None:
            return shard
        if not 0 <= number < len(self.entries):
            raise IndexError(f"{self.path}: shard {number} of {len(self.entries)}")
        entry = self.entries[number]
        self._make_room(entry.bytes)
        with self.location.held(entry, progress):
            shard = open_shard(self.path, entry, self.layout)
        # No lock: a second thread at worst maps a shard twice, and a lock held at a fork would hang the child.
        self._open[number] = shard
        while len(self._open) > self._max_open(number):
            self._open.pop(next(iter(self._open)), None)
        return shard

    def forget(self, number: int) -> bool:
        """Drop the local copy of a store's shard, which may be damaged; whether another can be fetched."""
        self._open.pop(number, None)
        self._hints.forget(number)
        return self.location.forget(self.entries[number])

    def _make_room(self, size: int) -> None:
        """Let go what was opened first until so many bytes more may be mapped."""
        limit = self.location.max_mapped_bytes
        mapped = 0 if limit is None else sum(self.entries[number].bytes for number in self._open)
        while self._open and (crowded(size) or (limit is not None and mapped + size > limit)):
            if (oldest := next(iter(self._open), None)) is not None:
                self._open.pop(oldest, None)
                mapped -= self.entries[oldest].bytes

    def _max_open(self, number: int) -> int:
        """How many shards to keep open, now that shard `number` is one of them."""
        by_documents = MAX_OPEN_DOCUMENTS * len(self.entries) // len(self)
        return max(1, min(MAX_OPEN_SHARDS, by_documents, carrier_of(self.entries[number]).max_open))

    def _whole_table(self) -> DocumentTable | None:
        """The table of documents where it lists this cask's shards and no others."""
        table = self._any_table()
        if table is None or not table.covers_exactly(entry.name for entry in self.entries):
            return None
        return table

    def _any_table(self) -> DocumentTable | None:
        if not self._looked_for_table:
            self._table, self._looked_for_table = self.location.read_table(), True
        return self._table

    def shard_documents(self) -> Iterator[ShardDocuments]:
        """Ids and lengths of every shard in order, from the table where it knows the shard."""
        table = self._any_table()
        for start in range(0, len(self.entries), _DOCUMENTS_AT_A_TIME):
            known = dict[str, ShardDocuments]()
            some = self.entries[start : start + _DOCUMENTS_AT_A_TIME]
            for number, entry in enumerate(some, start):
                if table is not None and entry.name in table:
                    known[entry.name] = table.shard(entry.name)
                elif (shard := self._open.get(number)) is not None:
                    known[entry.name] = shard.documents
            unknown = [entry for entry in some if entry.name not in known]
            known |= self.location.read_documents(unknown, self.layout)
            yield from (known[entry.name] for entry in some)

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "manifest": self.manifest, "entries": self.entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["location"], state["manifest"], state["entries"])  # type: ignore[misc]
