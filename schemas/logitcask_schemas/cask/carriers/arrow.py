"""The logical arrays of a shard as one Arrow record batch, and back: what the Arrow and the Parquet carrier share.

One row per document; every other column is a list whose values lie end to end, so that neither direction touches a
value.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.carrier import ByteSink
from logitcask_schemas.cask.documents import ShardDocuments
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import LEVELS, Column, Level, RecordLayout
from logitcask_schemas.cask.format.lists import LISTS, Answers, DocumentLists, ShardLists
from logitcask_schemas.cask.format.shard_entry import MAX_VALUES
from logitcask_schemas.errors import CaskCorruptionError, CaskError

REPAIR_ADVICE: Final = "Run `logitcask cask verify` on the cask and restore this shard from a copy, or capture it again"
_DOCUMENT_FIELDS: Final = 2
"""Fields before the layout's columns: document_id and checksum."""
_ELEMENTS: Final = {"|u1": pa.uint8(), "<u2": pa.uint16(), "<f2": pa.float16(), "<f4": pa.float32()}


SHARD_VERSIONS: Final = ("1", "2", "3")


def shard_version(lists: Sequence[str]) -> str:
    """The version of a shard with these lists: readers that do not know one refuse the shard by its version."""
    if not lists:
        return "1"
    return "2" if set(lists) == {Answers.name} else "3"


@lru_cache(maxsize=8)
def arrow_schema(layout: RecordLayout, identity: str, lists: tuple[str, ...]) -> Any:
    """The schema of a cask's shards with these lists, as docs/format.md section 4 has it."""
    fields = [pa.field("document_id", pa.binary(32), nullable=False), pa.field("checksum", pa.uint64(), nullable=False)]
    for column in layout.columns:
        element: Any = _ELEMENTS[column.dtype.str]
        if column.width is not None:
            element = pa.list_(pa.field("item", element, nullable=False), column.width)
        fields.append(pa.field(column.name, pa.list_(pa.field("item", element, nullable=False)), nullable=False))
    numbers = pa.list_(pa.field("item", pa.uint32(), nullable=False))
    fields += [pa.field(name, numbers, nullable=False) for name in lists]
    metadata = {
        "logitcask.format": "logitcask-shard",
        "logitcask.version": shard_version(lists),
        "logitcask.identity": identity,
    }
    return pa.schema(fields, metadata=metadata)


def arrow_batch(columns: ShardColumns, layout: RecordLayout, schema: Any) -> Any:
    """A shard's columns as one record batch of `arrow_schema`; values are not copied.

    Raises:
        CaskError: A column has more values than list offsets can count.
    """
    for column in layout.columns:
        if (count := len(columns.arrays[column.name]) * column.values_per_unit) > MAX_VALUES:
            raise CaskError(
                f"column {column.name} would hold {count} values, a shard holds at most {MAX_VALUES}; "
                "publish fewer documents at a time"
            )
    for lists in columns.lists:
        if len(lists.values) > MAX_VALUES:
            raise CaskError(f"more than {MAX_VALUES} values of {lists.name}; publish fewer documents at a time")
    documents = len(columns.document_ids)
    arrays = [
        pa.Array.from_buffers(pa.binary(32), documents, [None, _buffer(columns.document_ids)]),
        pa.Array.from_buffers(pa.uint64(), documents, [None, _buffer(columns.checksums)]),
    ]
    offsets = {level: _buffer(columns.offsets[level].astype("<i4")) for level in LEVELS}
    for index, column in enumerate(layout.columns, start=len(arrays)):
        list_type = schema.field(index).type
        array = np.ascontiguousarray(columns.arrays[column.name][0 : len(columns.arrays[column.name])])
        element = list_type.value_type
        if pa.types.is_fixed_size_list(element):
            flat = pa.Array.from_buffers(element.value_type, array.size, [None, _buffer(array)])
            values = pa.Array.from_buffers(element, len(array), [None], children=[flat])
        else:
            values = pa.Array.from_buffers(element, array.size, [None, _buffer(array)])
        arrays.append(pa.Array.from_buffers(list_type, documents, [None, offsets[column.level]], children=[values]))
    for lists in columns.lists:
        values = pa.Array.from_buffers(pa.uint32(), len(lists.values), [None, _buffer(lists.values)])
        cut = _buffer(lists.offsets.astype("<i4"))
        arrays.append(pa.Array.from_buffers(schema.field(lists.name).type, documents, [None, cut], children=[values]))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _buffer(array: NDArray[Any]) -> Any:
    """The array's bytes as an Arrow buffer, without a copy."""
    return pa.py_buffer(array.reshape(-1).view(np.uint8))


def require_schema(path: Path, schema: Any, layout: RecordLayout, identity: str) -> None:
    """Raise CaskCorruptionError unless the schema is a shard's, of this identity and with these columns."""
    expected = arrow_schema(layout, identity, list_names(schema))
    if schema.equals(expected, check_metadata=True):
        return
    metadata = {key.decode(errors="replace"): value for key, value in (schema.metadata or {}).items()}
    version = metadata.get("logitcask.version", b"").decode(errors="replace")
    if metadata.get("logitcask.format") != b"logitcask-shard" or version not in SHARD_VERSIONS:
        raise CaskCorruptionError(
            f"{path}: readable, but not a logitcask shard of version 1 to 3 (its metadata says "
            f"{metadata.get('logitcask.format')!r}, version {metadata.get('logitcask.version')!r}). {REPAIR_ADVICE}."
        )
    require_own(path, metadata.get("logitcask.identity", b""), identity)
    if not schema.equals(expected, check_metadata=False) or version != shard_version(list_names(schema)):
        raise CaskCorruptionError(
            f"{path}: columns are {_listing(schema)}; the manifest asks for {_listing(expected)}. {REPAIR_ADVICE}."
        )


def require_own(path: Path, written_for: bytes, identity: str) -> None:
    """Raise CaskCorruptionError where a file's metadata name another cask's identity."""
    if (name := written_for.decode(errors="replace")) != identity:
        raise CaskCorruptionError(
            f"{path}: foreign shard: written for identity {name!r}, this cask's is {identity!r}. "
            "Move it back to the cask it came from."
        )


def list_names(schema: Any) -> tuple[str, ...]:
    """Which columns of lists a schema has."""
    return tuple(kind.name for kind in LISTS if kind.name in schema.names)


def _listing(schema: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def columns_of_batch(path: Path, batch: Any, layout: RecordLayout) -> ShardColumns:
    """The columns as views of the batch's buffers, after `require_schema`.

    Raises:
        CaskCorruptionError: Nulls, offsets that do not cut the values, or buffers shorter than they claim.
    """
    documents, names = batch.num_rows, batch.schema.names
    cuts: dict[Level, NDArray[np.int32]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for column in layout.columns:
        listed = batch.column(column.name)
        values = unsliced(path, column.name, listed)
        cut = view_of(path, column.name, listed.buffers()[1], np.dtype("<i4"), documents + 1)
        first_cut = cuts.setdefault(column.level, cut)
        sound = cut[0] == 0 and (cut[1:] >= cut[:-1]).all() if first_cut is cut else np.array_equal(cut, first_cut)
        if not sound or cut[-1] != len(values):
            raise _uncut(path, column, len(values), documents)
        arrays[column.name] = _values(path, column, values)
    ids = batch.column("document_id").buffers()[1]
    checksums = batch.column("checksum").buffers()[1]
    return ShardColumns(
        document_ids=view_of(path, "document_id", ids, np.dtype(np.uint8), documents * 32).reshape(documents, 32),
        checksums=view_of(path, "checksum", checksums, np.dtype("<u8"), documents),
        offsets={level: cut.astype(np.int64) for level, cut in cuts.items()},
        arrays=arrays,
        lists=ShardLists.of([_lists(path, batch.column(kind.name), kind) for kind in LISTS if kind.name in names]),
    )


def _lists(path: Path, listed: Any, kind: type[DocumentLists]) -> DocumentLists:
    values = unsliced(path, kind.name, listed)
    cut = view_of(path, kind.name, listed.buffers()[1], np.dtype("<i4"), len(listed) + 1)
    flat = view_of(path, kind.name, values.buffers()[-1], np.dtype("<u4"), len(values))
    return kind.opened(path, cut.astype(np.int64), flat, len(listed))


def documents_of_batch(path: Path, batch: Any, layout: RecordLayout) -> ShardDocuments:
    """Ids and lengths of the documents as views, after `require_schema`; looks at no columns but these two.

    Raises:
        CaskCorruptionError: As `columns_of_batch`, about what is looked at.
    """
    documents, tokens = batch.num_rows, layout.columns[0]
    listed = batch.column(_DOCUMENT_FIELDS)
    values = unsliced(path, tokens.name, listed)
    cut = view_of(path, tokens.name, listed.buffers()[1], np.dtype("<i4"), documents + 1)
    if cut[0] or (cut[1:] < cut[:-1]).any() or cut[-1] != len(values):
        raise _uncut(path, tokens, len(values), documents)
    ids = view_of(path, "document_id", batch.column(0).buffers()[1], np.dtype(np.uint8), documents * 32)
    return ShardDocuments(ids=ids.reshape(documents, 32), lengths=(cut[1:] - cut[:-1]).astype(np.int64))


def unsliced(path: Path, name: str, listed: Any) -> Any:
    """The values of a list column; CaskCorruptionError where it is not as writers make it."""
    values = listed.values
    if listed.null_count or values.null_count or listed.offset or values.offset:
        raise CaskCorruptionError(f"{path}: column {name} has nulls or slices, which no writer makes")
    return values


def _uncut(path: Path, column: Column, values: int, documents: int) -> CaskCorruptionError:
    return CaskCorruptionError(
        f"{path}: offsets of column {column.name} do not cut its {values} values into {documents} documents as the "
        f"other columns of level {column.level!r} do. {REPAIR_ADVICE}."
    )


def _values(path: Path, column: Column, values: Any) -> NDArray[Any]:
    count = len(values)
    # The buffer of values is the last one, under whatever levels of nesting.
    flat = view_of(path, column.name, values.buffers()[-1], column.dtype, count * column.values_per_unit)
    return flat if column.width is None else flat.reshape(count, column.width)


def view_of(path: Path, name: str, buffer: Any, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """A numpy view of a mapped buffer, refused when the buffer is shorter than the column claims."""
    size = 0 if buffer is None else buffer.size
    if size < count * dtype.itemsize:
        raise CaskCorruptionError(
            f"{path}: column {name} should have {count * dtype.itemsize} bytes, its buffer has {size}. {REPAIR_ADVICE}."
        )
    return np.frombuffer(buffer, dtype=dtype, count=count) if count else np.empty(0, dtype=dtype)


class ArrowCarrier:
    """The carrier to train from. See `Carrier` for the contract and docs/format.md for the bytes."""

    name: Final = "arrow"
    suffix: Final = ".arrow"
    max_open: Final = 4096
    """Linux allows 65,530 mappings per process."""

    def write(self, columns: ShardColumns, layout: RecordLayout, identity: str, file: ByteSink) -> None:
        """Write a whole shard as an Arrow file of one record batch."""
        schema = arrow_schema(layout, identity, columns.lists.names)
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema, options=write_options()) as writer:
            writer.write_batch(arrow_batch(columns, layout, schema))

    def open(self, path: Path, layout: RecordLayout, identity: str, content: memoryview | None = None) -> ShardColumns:
        """A shard as views of the mapped file, which stays mapped while any of them lives."""
        with arrow_explained(path):
            batch = only_batch(path, content)
            require_schema(path, batch.schema, layout, identity)
            return columns_of_batch(path, batch, layout)

    def open_documents(self, path: Path, layout: RecordLayout, identity: str, content: memoryview) -> ShardDocuments:
        """Ids and lengths, as views of `content`; what the other columns hold is proved when the shard is opened.

        Raises:
            CaskCorruptionError: As `open`, as far as these tell.
        """
        with arrow_explained(path):
            batch = only_batch(path, content)
            require_schema(path, batch.schema, layout, identity)
            return documents_of_batch(path, batch, layout)


def only_batch(path: Path, content: memoryview | None) -> Any:
    """The one record batch of an Arrow file, which is mapped where its content is not given."""
    if content is not None:
        buffer = pa.py_buffer(content)
    else:
        with pa.memory_map(os.fsencode(path)) as source:
            # Closing the source gives the file descriptor back; the buffer keeps the mapping itself alive.
            buffer = source.read_buffer()
    # From a buffer, not from the file: a file's footer is read by Arrow's thread pool, which costs two thread switches
    # per shard and does not exist in a forked worker.
    reader = pa.ipc.open_file(pa.BufferReader(buffer))
    if reader.num_record_batches != 1:
        raise CaskCorruptionError(f"{path}: {reader.num_record_batches} record batches, expected 1")
    batch = reader.get_batch(0)
    batch.validate()
    if not all(_lies_within(buffer, column) for column in batch.columns):
        raise CaskCorruptionError(f"{path}: its columns are compressed, which no writer does. {REPAIR_ADVICE}.")
    return batch


def _lies_within(file: Any, column: Any) -> bool:
    """Whether a column's bytes are those of the file."""
    parts = [part for part in column.buffers() if part is not None and part.size]
    return all(file.address <= part.address and part.address + part.size <= file.address + file.size for part in parts)


@contextmanager
def arrow_explained(path: Path) -> Iterator[None]:
    """Raise CaskCorruptionError where Arrow cannot read what is in a file; what the system says stays as it is."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's; without a number it is Arrow's, about what it read
        # The last one comes from damaged names: Arrow decodes them only when they are asked for.
        raise CaskCorruptionError(f"{path}: not a readable Arrow IPC file ({error}). {REPAIR_ADVICE}.") from error


def write_options() -> Any:
    """As every shard is framed: metadata of version 5, nothing compressed."""
    return pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V5, compression=None, use_threads=False)
