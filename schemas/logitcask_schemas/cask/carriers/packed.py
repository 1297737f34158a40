"""Shards in the fewest bytes: an Arrow file with each document's ids, counts and codes as one run of bits.

What `format.packed` does not pack (values of two or four bytes, lists) lies beside the bits as in an Arrow shard. A
shard is decoded as a whole by `open`; `open_file` maps it, and documents are decoded as they are needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.arrow import (
    REPAIR_ADVICE,
    arrow_batch,
    arrow_explained,
    arrow_schema,
    columns_of_batch,
    list_names,
    only_batch,
    require_own,
    unsliced,
    view_of,
    write_options,
)
from logitcask_schemas.cask.carriers.carrier import ByteSink
from logitcask_schemas.cask.documents import ShardDocuments
from logitcask_schemas.cask.format.columns import Offsets, ShardColumns, gather_rows
from logitcask_schemas.cask.format.layout import LEVELS, Level, RecordLayout
from logitcask_schemas.cask.format.packed.packed_shard import PackedShard, ShardCodes, fault, pack, unpack
from logitcask_schemas.cask.format.packed.streams import plain_columns
from logitcask_schemas.cask.format.shard_entry import MAX_VALUES
from logitcask_schemas.errors import CaskCorruptionError, CaskError, InvalidRecordError

_COUNTS: Final[dict[Level, str]] = {
    "token": "tokens",
    "position": "positions",
    "head": "head_entries",
    "tail": "tail_entries",
}
"""Column with each document's number of tokens, and so on."""
_WORDS: Final = "words"
_FORMAT: Final = b"logitcask-packed-shard"
_VERSION: Final = b"1"
_FORMAT_KEY, _VERSION_KEY, _IDENTITY_KEY = b"logitcask.format", b"logitcask.version", b"logitcask.identity"
_COLUMNS_KEY, _RANKS_KEY, _CODES_KEY = b"logitcask.columns", b"logitcask.ranks", b"logitcask.codes"


class PackedCarrier:
    """The carrier that takes least room. See `Carrier` for the contract and docs/format.md for the bytes."""

    name: Final = "packed"
    suffix: Final = ".packed"
    max_open: Final = 4096

    def write(self, columns: ShardColumns, layout: RecordLayout, identity: str, file: ByteSink) -> None:
        """Pack a whole shard; its bits lie in memory on the way.

        Raises:
            InvalidRecordError: Records were imported, or break a rule that the packed form relies on, see `streams_of`.
        """
        if not layout.head_holds_next:
            raise InvalidRecordError(
                "records that another tool made cannot be packed, as a head may lack the next token; choose another "
                "carrier, such as zarr"
            )
        packed = pack(columns, layout)
        if len(packed.words_W) > MAX_VALUES:
            raise CaskError(f"more than {MAX_VALUES} words of bits; publish fewer documents at a time")
        plain = _plain(layout)
        beside = replace(columns, arrays={column.name: columns.arrays[column.name] for column in plain.columns})
        plain_schema = arrow_schema(plain, identity, columns.lists.names)
        id_column, checksum, *others = arrow_batch(beside, plain, plain_schema).columns
        counts = [pa.array(np.diff(columns.offsets[level]).astype(np.uint32)) for level in LEVELS]
        words = pa.Array.from_buffers(
            _words_type(),
            len(columns.document_ids),
            [None, pa.py_buffer(packed.word_offsets_D1.astype("<i4"))],
            children=[pa.array(packed.words_W)],
        )
        metadata = {
            _FORMAT_KEY: _FORMAT,
            _VERSION_KEY: _VERSION,
            _IDENTITY_KEY: identity,
            _COLUMNS_KEY: _listing(layout),
            _RANKS_KEY: _digest(layout),
            _CODES_KEY: packed.codes.text,
        }
        schema = _fields(plain_schema).with_metadata(metadata)
        batch = pa.RecordBatch.from_arrays([id_column, checksum, *counts, words, *others], schema=schema)
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema, options=write_options()) as writer:
            writer.write_batch(batch)

    def open(self, path: Path, layout: RecordLayout, identity: str, content: memoryview | None = None) -> ShardColumns:
        """A shard in memory; every document is decoded.

        Raises:
            CaskCorruptionError: Also where a document's bits are no records; names the document.
            MissingExtraError: Numba is not installed.
        """
        return self.open_file(path, layout, identity, content).columns()

    def open_around_damage(self, path: Path, layout: RecordLayout, identity: str, content: memoryview) -> ShardColumns:
        """As `open`, for files that are damaged: of documents whose bits are no records the columns mean nothing.

        Which documents are whole is for their checksums to say.
        """
        file = self.open_file(path, layout, identity, content)
        return file.decoded(range(len(file.beside.document_ids)))[0]

    def open_documents(self, path: Path, layout: RecordLayout, identity: str, content: memoryview) -> ShardDocuments:
        """Ids and lengths, without decoding anything.

        Raises:
            CaskCorruptionError: As `open`, as far as these tell.
        """
        with arrow_explained(path):
            batch = only_batch(path, content)
            _require_schema(path, batch.schema, layout, identity)
            ids = view_of(path, "document_id", batch.column(0).buffers()[1], np.dtype(np.uint8), batch.num_rows * 32)
            lengths = np.diff(_offsets(path, batch)["token"])
        return ShardDocuments(ids=ids.reshape(-1, 32), lengths=lengths)

    def open_file(
        self, path: Path, layout: RecordLayout, identity: str, content: memoryview | None = None
    ) -> "PackedFile":
        """A shard of which nothing is decoded yet.

        Raises:
            CaskCorruptionError: As `open`, but for a document's bits.
        """
        with arrow_explained(path):
            batch = only_batch(path, content)
            metadata = _require_schema(path, batch.schema, layout, identity)
            offsets, plain = _offsets(path, batch), _plain(layout)
            names = [field.name for field in arrow_schema(plain, identity, list_names(batch.schema))]
            beside = columns_of_batch(path, batch.select(names), plain)
            word_offsets, words = _words(path, batch)
        if any(not np.array_equal(cut, offsets[level]) for level, cut in beside.offsets.items()):
            raise CaskCorruptionError(f"{path}: columns beside the bits have other numbers of values. {REPAIR_ADVICE}.")
        try:
            codes = ShardCodes.parsed(metadata[_CODES_KEY].decode(), layout)
        except (CaskCorruptionError, UnicodeDecodeError) as error:
            raise CaskCorruptionError(f"{path}: {error}. {REPAIR_ADVICE}.") from error
        return PackedFile(
            path=path,
            layout=layout,
            beside=replace(beside, offsets=offsets),
            packed=PackedShard(codes=codes, words_W=words, word_offsets_D1=word_offsets),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """A packed shard, mapped."""

    path: Path
    layout: RecordLayout
    """Of the cask."""
    beside: ShardColumns
    """All but the arrays that are packed: ids, checksums, offsets, lists, and the columns beside the bits."""
    packed: PackedShard

    def columns(self) -> ShardColumns:
        """All documents decoded.

        Raises:
            CaskCorruptionError: A document's bits are no records; names the document.
            MissingExtraError: Numba is not installed.
        """
        columns, faults_D = self.decoded(range(len(self.beside.document_ids)))
        for row in np.flatnonzero(faults_D).tolist():
            raise self.fault_of(row, int(faults_D[row]))
        return columns

    def decoded(self, rows: Sequence[int]) -> tuple[ShardColumns, NDArray[np.uint8]]:
        """Decode documents.

        Args:
            rows: Their numbers, ascending.

        Returns:
            Their columns, and what is wrong with each document's bits, see `unpack`.

        Raises:
            CaskCorruptionError: Sizes that so many bits cannot hold.
            MissingExtraError: Numba is not installed.
        """
        beside, packed = self.beside, self.packed
        if len(rows) < len(beside.document_ids):
            beside = gather_rows([(beside, row) for row in rows], _plain(self.layout))
            packed = packed.select(rows)
        try:
            arrays, faults_D = unpack(packed, beside.offsets, beside.lists, self.layout)
        except CaskCorruptionError as error:
            raise CaskCorruptionError(f"{self.path}: {error}. {REPAIR_ADVICE}.") from error
        both = {**beside.arrays, **arrays}
        in_order = {column.name: both[column.name] for column in self.layout.columns}
        return replace(beside, arrays=in_order), faults_D

    def fault_of(self, row: int, number: int) -> CaskCorruptionError:
        """The error of a document whose bits have this fault."""
        document_id = self.beside.document_ids[row].tobytes().hex()
        return CaskCorruptionError(
            f"{self.path}: document {row} ({document_id[:16]}): {fault(number)}. {REPAIR_ADVICE}."
        )


def _plain(layout: RecordLayout) -> RecordLayout:
    """The layout of what lies beside the bits."""
    return replace(layout, columns=tuple(plain_columns(layout)))


def _words_type() -> Any:
    return pa.list_(pa.field("item", pa.uint64(), nullable=False))


def _fields(plain_schema: Any) -> Any:
    """The schema of a packed shard with these columns beside the bits."""
    id_field, checksum, *others = plain_schema
    counts = [pa.field(name, pa.uint32(), nullable=False) for name in _COUNTS.values()]
    return pa.schema([id_field, checksum, *counts, pa.field(_WORDS, _words_type(), nullable=False), *others])


def _listing(layout: RecordLayout) -> str:
    """The columns that a shard of a layout decodes to."""
    return ", ".join(f"{column.name}: {column.dtype.name}" for column in layout.columns)


def _digest(layout: RecordLayout) -> str:
    return "" if layout.ranks is None else layout.ranks.digest


def _require_schema(path: Path, schema: Any, layout: RecordLayout, identity: str) -> dict[bytes, bytes]:
    """The metadata of a schema that is a packed shard's, of this identity, layout and rank table.

    Raises:
        CaskCorruptionError: It is not.
    """
    metadata: dict[bytes, bytes] = dict(schema.metadata or {})
    kind, version = metadata.get(_FORMAT_KEY), metadata.get(_VERSION_KEY)
    if kind != _FORMAT or version != _VERSION or _CODES_KEY not in metadata:
        raise CaskCorruptionError(
            f"{path}: readable, but not a packed shard of version 1 (its metadata says {kind!r}, version {version!r}). "
            f"{REPAIR_ADVICE}."
        )
    require_own(path, metadata.get(_IDENTITY_KEY, b""), identity)
    expected = _fields(arrow_schema(_plain(layout), identity, list_names(schema)))
    listed = metadata.get(_COLUMNS_KEY, b"").decode(errors="replace")
    if listed != _listing(layout) or not schema.equals(expected, check_metadata=False):
        stored = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise CaskCorruptionError(
            f"{path}: columns are {listed}, stored as {stored}; the manifest asks for {_listing(layout)}. "
            f"{REPAIR_ADVICE}."
        )
    if (packed_with := metadata.get(_RANKS_KEY, b"").decode(errors="replace")) != _digest(layout):
        raise CaskCorruptionError(
            f"{path}: packed with rank table {packed_with or '(none)'}, the cask's is {_digest(layout) or '(none)'}. "
            "Restore cask.json from a copy, or move the shard back to the cask it came from."
        )
    return metadata


def _offsets(path: Path, batch: Any) -> dict[Level, Offsets]:
    """Where each document starts, by level."""
    offsets = {}
    for level, name in _COUNTS.items():
        counts = view_of(path, name, batch.column(name).buffers()[1], np.dtype("<u4"), batch.num_rows)
        cut = np.zeros(batch.num_rows + 1, dtype=np.int64)
        np.cumsum(counts, dtype=np.int64, out=cut[1:])
        if cut[-1] > MAX_VALUES:
            raise CaskCorruptionError(
                f"{path}: {name} add up to {int(cut[-1])}, at most {MAX_VALUES}. {REPAIR_ADVICE}."
            )
        offsets[level] = cut
    return offsets


def _words(path: Path, batch: Any) -> tuple[Offsets, NDArray[np.uint64]]:
    """The bits of all documents, and where each document's start."""
    listed = batch.column(_WORDS)
    values = unsliced(path, _WORDS, listed)
    cut = view_of(path, _WORDS, listed.buffers()[1], np.dtype("<i4"), batch.num_rows + 1).astype(np.int64)
    if cut[0] or (cut[1:] < cut[:-1]).any() or cut[-1] != len(values):
        raise CaskCorruptionError(
            f"{path}: offsets do not cut {len(values)} words into {batch.num_rows} documents. {REPAIR_ADVICE}."
        )
    return cut, view_of(path, _WORDS, values.buffers()[-1], np.dtype("<u8"), len(values))
