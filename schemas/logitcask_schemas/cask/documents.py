"""documents.bin: ids and lengths of all documents of many shards in one mapped file, so that nobody opens every shard.

It is derived from the shards and may be deleted; the next compaction makes it anew. A shard's name comes from its
content, so what the table says of a name stays true whatever else is published or removed: a reader takes from it what
concerns its own shards and opens only those that the table does not know.

Layout, little-endian, every section at a multiple of 8 bytes (zero padded):

    header    64 bytes, see `_HEADER`
    names     [S, 16]   shards, ascending: the names as bytes
    starts    u64 [S+1] number of each shard's first document
    lengths   u32 [D]   tokens
    order     u32 or u64 [D]  documents in ascending order of the first 8 bytes of their ids, ties by number
    ids       [D, 32]

Each of the three checksums is proved when its part is first used, so that lengths do not cost a read of the ids.
"""

import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from logitcask_schemas.cask.storage.files import FileOperations, open_regular, publish_file, reads_explained
from logitcask_schemas.errors import CaskCorruptionError


class DocumentIndex:
    """A multimap from 32-byte ids to integers; for an id added twice, any of its locations is the answer."""

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.int64]]] = []

    def __len__(self) -> int:
        return sum(len(prefixes) for prefixes, _, _ in self._runs)

    def add(self, ids_D32: NDArray[np.uint8], locations_D: NDArray[np.int64]) -> None:
        """Insert ids, [D, 32], with their locations, [D]."""
        if not len(ids_D32):
            return
        run = _sorted_run(np.ascontiguousarray(ids_D32), locations_D)
        runs = list(self._runs)
        while runs and len(runs[-1][0]) < 2 * len(run[0]):
            older = runs.pop()
            run = _sorted_run(np.concatenate([older[1], run[1]]), np.concatenate([older[2], run[2]]))
        # One assignment, so that a thread that looks something up meanwhile sees all of the old or all of the new.
        self._runs = [*runs, run]

    def find(self, document_id: bytes) -> int | None:
        """The location of a document, or None."""
        prefix = np.frombuffer(document_id[:8], dtype=">u8")[0].astype(np.uint64)
        for prefixes, ids, locations in self._runs:
            at = int(np.searchsorted(prefixes, prefix))
            while at < len(prefixes) and prefixes[at] == prefix:
                if ids[at].tobytes() == document_id:
                    return int(locations[at])
                at += 1
        return None


def _sorted_run(
    ids_D32: NDArray[np.uint8], locations_D: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.int64]]:
    prefixes = ids_D32[:, :8].copy().view(">u8").reshape(-1).astype(np.uint64)
    order = np.argsort(prefixes, kind="stable")
    return prefixes[order], ids_D32[order], locations_D[order]


DOCUMENTS_NAME: Final = "documents.bin"
_MAGIC: Final = b"LCDOCS01"
_HEADER: Final = struct.Struct("<8s6Q")  # magic, S, D, item size of order, xxh3 of names to lengths, of order, of ids
_HEADER_BYTES: Final = 64  # _HEADER, then the xxh3 of its bytes
_NAME_BYTES: Final = 16
_ID_BYTES: Final = 32
_BLOCK_BYTES: Final = 2**20
_ADVICE: Final = "It only repeats the shards: delete it, the next writer makes it anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDocuments:
    """The documents of one shard."""

    ids: NDArray[np.uint8]
    """[D, 32]"""
    lengths: NDArray[np.integer[Any]]
    """Tokens, [D]."""


@dataclass(frozen=True, slots=True)
class _Section:
    start: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class _Sections:
    names: _Section
    starts: _Section
    lengths: _Section
    order: _Section
    ids: _Section

    @classmethod
    def of(cls, shards: int, documents: int, order_bytes: int) -> "_Sections":
        sizes = (shards * _NAME_BYTES, (shards + 1) * 8, documents * 4, documents * order_bytes, documents * _ID_BYTES)
        sections, start = [], _HEADER_BYTES
        for size in sizes:
            sections.append(_Section(start, size))
            start += size + -size % 8
        return cls(*sections)


class DocumentTable:
    """An opened documents.bin; its arrays are views of the mapped file."""

    def __init__(self, path: Path, *, doubted: bool = False) -> None:
        """Map the file and prove its header and the list of shards; `open` is the way in.

        Args:
            path: of the file.
            doubted: read all of it before it is mapped: a bad sector is an error where it is read, and the end of the
                process where it is mapped.

        Raises:
            FileNotFoundError: There is none.
            CaskCorruptionError: Damaged.
        """
        self.path = path
        with open_regular(path) as file, reads_explained(path):
            documents = self._read_header(file.read(_HEADER_BYTES), os.fstat(file.fileno()).st_size)
            while doubted and file.read(_BLOCK_BYTES):
                pass
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sections = self._sections
        self._require(0, _HEADER_BYTES, sections.order.start, "names and lengths")
        self._proved = False
        self.num_documents = documents
        self.names = bytes(self._map[sections.names.start : sections.names.stop])
        """All names end to end, 16 bytes each."""
        self._starts = self._array(sections.starts, np.dtype("<u8"))
        if self._starts[0] or self._starts[-1] != documents or (self._starts[1:] < self._starts[:-1]).any():
            raise CaskCorruptionError(f"{path}: shards do not divide its {documents} documents. {_ADVICE}.")
        self.lengths: NDArray[np.uint32] = self._array(sections.lengths, np.dtype("<u4"))
        """Tokens per document, [D]."""
        self._numbers = {
            self.names[i * _NAME_BYTES : (i + 1) * _NAME_BYTES]: i for i in range(len(self.names) // _NAME_BYTES)
        }

    def _read_header(self, header: bytes, size: int) -> int:
        """Learn and prove where the sections of a file of this size are; returns the number of documents."""
        path = self.path
        if len(header) < _HEADER_BYTES:
            raise CaskCorruptionError(f"{path}: {size} bytes, its header alone has {_HEADER_BYTES}. {_ADVICE}.")
        stored, computed = struct.unpack("<Q", header[_HEADER.size :])[0], _digest([header[: _HEADER.size]])
        magic, shards, documents, order_bytes, *self._checksums = _HEADER.unpack(header[: _HEADER.size])
        if magic != _MAGIC or stored != computed or order_bytes not in (4, 8):
            raise CaskCorruptionError(
                f"{path}: not a table of documents of version 1: starts with {magic!r}, its header's checksum is "
                f"{stored:016x}, the header's bytes give {computed:016x}. {_ADVICE}."
            )
        self._sections = _Sections.of(shards, documents, order_bytes)
        if size != self._sections.ids.stop:
            raise CaskCorruptionError(
                f"{path}: should have {self._sections.ids.stop} bytes for {shards} shards and {documents} documents, "
                f"it has {size}. {_ADVICE}."
            )
        self._order_dtype = np.dtype(f"<u{order_bytes}")
        return int(documents)

    @classmethod
    def open(cls, cask: Path, *, doubted: bool = False) -> "DocumentTable | None":
        """The cask's table, or None where there is none yet; `doubted` as for the class.

        Raises:
            CaskCorruptionError: It is damaged.
        """
        try:
            return cls(cask / DOCUMENTS_NAME, doubted=doubted)
        except FileNotFoundError:
            return None

    def __contains__(self, name: str) -> bool:
        return bytes.fromhex(name) in self._numbers

    def shard_names(self) -> Iterator[str]:
        """Names of the shards it knows, ascending."""
        return (name.hex() for name in self._numbers)

    @property
    def ids(self) -> NDArray[np.uint8]:
        """SHA-256 of every document's token ids, [D, 32]."""
        self._prove()
        return self._array(self._sections.ids, np.dtype(np.uint8)).reshape(-1, _ID_BYTES)

    def shard(self, name: str) -> ShardDocuments:
        """The documents of one shard; KeyError where the table does not know it."""
        number = self._numbers[bytes.fromhex(name)]
        rows = slice(int(self._starts[number]), int(self._starts[number + 1]))
        return ShardDocuments(ids=self.ids[rows], lengths=self.lengths[rows])

    def covers_exactly(self, names: Iterable[str]) -> bool:
        """Whether it lists these shards, given in ascending order, and no other."""
        return self.names == b"".join(map(bytes.fromhex, names))

    def find(self, document_id: bytes) -> int | None:
        """The number of a document by its 32-byte id, or None; a binary search in the mapped file."""
        return next(self._numbers_of(document_id), None)

    def shards_with(self, document_id: bytes) -> Iterator[str]:
        """Names of the shards that hold a document, usually at most one."""
        for number in self._numbers_of(document_id):
            shard = int(np.searchsorted(self._starts, number, side="right")) - 1
            yield self.names[shard * _NAME_BYTES : (shard + 1) * _NAME_BYTES].hex()

    def _numbers_of(self, document_id: bytes) -> Iterator[int]:
        ids = self.ids
        order = self._array(self._sections.order, self._order_dtype)
        prefix = document_id[:8]
        low, high = 0, self.num_documents
        while low < high:
            middle = (low + high) // 2
            if ids[order[middle], :8].tobytes() < prefix:
                low = middle + 1
            else:
                high = middle
        while low < self.num_documents:
            stored_id = ids[order[low]].tobytes()
            if stored_id == document_id:
                yield int(order[low])
            if stored_id[:8] != prefix:
                return
            low += 1

    def verify(self) -> None:
        """Prove every byte, again; CaskCorruptionError says which part is damaged."""
        sections = self._sections
        self._require(0, _HEADER_BYTES, sections.order.start, "names and lengths")
        self._require(1, sections.order.start, sections.ids.start, "the sorted order")
        self._require(2, sections.ids.start, sections.ids.stop, "document ids")
        order = self._array(sections.order, self._order_dtype)
        if self.num_documents and int(order.max()) >= self.num_documents:
            raise CaskCorruptionError(f"{self.path}: orders document {int(order.max())} of {self.num_documents}")

    def _prove(self) -> None:
        if not self._proved:
            self.verify()
            self._proved = True

    def _require(self, which: int, start: int, stop: int, part: str) -> None:
        with memoryview(self._map) as view, view[start:stop] as window:
            computed = _digest([window])
        if computed != self._checksums[which]:
            raise CaskCorruptionError(
                f"{self.path}: {part}: stored checksum {self._checksums[which]:016x}, bytes {start} to {stop} give "
                f"{computed:016x}. {_ADVICE}."
            )

    def _array(self, section: _Section, dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.frombuffer(self._map, dtype=dtype, count=section.size // dtype.itemsize, offset=section.start)


def write_document_table(files: FileOperations, cask: Path, shards: Mapping[str, ShardDocuments]) -> None:
    """Publish documents.bin over these shards; equal shards give equal bytes.

    Ids are written from where they are; what is held in memory is 20 bytes per document.

    Raises:
        CaskWriteError: The file system refuses; the table is as it was.
    """
    pieces = [(bytes.fromhex(name), shards[name]) for name in sorted(shards)]
    starts = np.zeros(len(pieces) + 1, dtype="<u8")
    np.cumsum([len(piece.lengths) for _, piece in pieces], out=starts[1:])
    documents = int(starts[-1])
    order_dtype = np.dtype("<u4" if documents < 1 << 32 else "<u8")
    prefixes = [np.ascontiguousarray(piece.ids[:, :8]).view(">u8").reshape(-1) for _, piece in pieces]
    order = np.argsort(np.concatenate([np.empty(0, np.uint64), *prefixes]), kind="stable").astype(order_dtype)
    lengths = np.concatenate(
        [np.empty(0, "<u4"), *(piece.lengths for _, piece in pieces)], dtype="<u4", casting="unsafe"
    )
    first = [b"".join(name for name, _ in pieces), starts, lengths, bytes(-lengths.nbytes % 8)]
    second = [order, bytes(-order.nbytes % 8)]
    third = [piece.ids for _, piece in pieces]
    head = _HEADER.pack(
        _MAGIC, len(pieces), documents, order_dtype.itemsize, _digest(first), _digest(second), _digest(third)
    )

    def write(file: BinaryIO) -> str:
        file.write(head + struct.pack("<Q", _digest([head])))
        for part in (*first, *second, *third):
            file.write(_bytes(part))
        return DOCUMENTS_NAME

    publish_file(files, cask, write)


def _digest(parts: Iterable[Any]) -> int:
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(_bytes(part))
    return int(digest.intdigest())


def _bytes(part: Any) -> Any:
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8).data if isinstance(part, np.ndarray) else part
