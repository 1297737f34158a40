"""shards/<name>.hints.arrow: the hints of a shard's documents, an Arrow file of its own beside the shard.

So training without hints, which are a hundred times a record, never touches their bytes, and they may be dropped. The
file is made before the shard's entry, which gives its size and SHA-256; it is the same whatever carrier the shard has.

One row per document, in the shard's order; see docs/format.md, section 4.7.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.arrow import arrow_explained, only_batch, unsliced, view_of, write_options
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.hint_columns import HintColumns, hints_checksum
from logitcask_schemas.cask.format.layout import SHARDS_NAME
from logitcask_schemas.cask.format.manifest import MAX_VALUES, HintsFile, ShardEntry
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.files import (
    FileOperations,
    clear_errors,
    link_or_copy,
    open_regular,
    publish_file,
    read_whole,
    reads_explained,
    size_of,
)
from logitcask_schemas.errors import (
    CaskCorruptionError,
    CaskError,
    CaskNotFoundError,
    HintsDroppedError,
    InvalidRecordError,
)
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import MAX_WIDTH, HintRows, hint_layout

HINTS_SUFFIX: Final = ".hints.arrow"
"""Of `ShardEntry.hints_name`."""
_FORMAT: Final = "logitcask-hints"
_VERSION: Final = "1"
_BLOCK: Final = 1 << 20
_ADVICE: Final = (
    "Restore the file from a copy of the cask, or run `logitcask cask repair`, after which the shard has no hints; its "
    "records are not touched"
)
_ELEMENTS: Final = {"|i1": pa.int8(), "<f2": pa.float16(), "<f4": pa.float32(), "<u2": pa.uint16()}


@dataclass(frozen=True, slots=True, kw_only=True)
class HintFile:
    """The open file of one shard; arrays are views of it."""

    path: Path
    document_ids: NDArray[np.uint8]
    """[D, 32]"""
    columns: HintColumns

    def verify(self, row: int) -> None:
        """Prove a document's hints against their checksum; CaskCorruptionError where they do not give it."""
        identity, stored = self.document_ids[row].tobytes(), int(self.columns.checksums[row])
        if (computed := hints_checksum(identity, self.columns.of(row))) != stored:
            raise CaskCorruptionError(
                f"{self.path}: hints of document {row} ({identity.hex()[:16]}): stored checksum {stored:016x}, their "
                f"bytes give {computed:016x}. {_ADVICE}."
            )


def hints_path(cask: Path, entry: ShardEntry) -> Path:
    """Where the file of a shard's hints lies, or would."""
    return cask / SHARDS_NAME / entry.hints_name


def open_hints(cask: Path, entry: ShardEntry, spec: HintSpec) -> HintFile:
    """Open the file beside a shard; it is mapped, not read.

    Raises:
        HintsDroppedError: The shard has none (any more).
        CaskNotFoundError: The file is gone.
        CaskCorruptionError: It has another size, is no such file, is another shard's, or disagrees with the spec.
        CaskReadError: The operating system refuses, which says nothing about the file.
    """
    path = require_hint_file(cask, entry)
    with _missing_explained(path, entry), reads_explained(path), arrow_explained(path):
        return _parsed(path, only_batch(path, None), entry, spec)


def require_hint_file(cask: Path, entry: ShardEntry) -> Path:
    """The file beside a shard, which is there and has its size; it is not opened. Errors as `open_hints`."""
    path, described = hints_path(cask, entry), _described(cask, entry)
    with _missing_explained(path, entry):
        _require_size(path, described, size_of(path))
    return path


def read_hints(cask: Path, entry: ShardEntry, spec: HintSpec) -> HintFile:
    """Read the file into memory, prove its SHA-256, and open it there; for whoever expects damage.

    Raises:
        As `open_hints`; CaskCorruptionError also where the SHA-256 is another one.
    """
    path, described, digest = hints_path(cask, entry), _described(cask, entry), hashlib.sha256()
    with _missing_explained(path, entry):
        _require_size(path, described, size_of(path))
        content = read_whole(path, described.bytes, digest.update)
        _require_size(path, described, len(content))
        if (computed := digest.hexdigest()) != described.sha256:
            raise CaskCorruptionError(f"{path}: SHA-256 should be {described.sha256}, it is {computed}. {_ADVICE}.")
        with arrow_explained(path):
            return _parsed(path, only_batch(path, content.data), entry, spec)


def require_hints_of(shard: Shard, file: HintFile, row: int, spec: HintSpec | None) -> None:
    """Prove that a file's rows are those of a document of its shard.

    Raises:
        CaskCorruptionError: They are another document's, of another number of positions, or damaged.
    """
    expected, stored = shard.document_ids[row].tobytes(), file.document_ids[row].tobytes()
    if stored != expected:
        raise CaskCorruptionError(
            f"{file.path}: document {row} is {stored.hex()[:16]}, in the shard it is {expected.hex()[:16]}. {_ADVICE}."
        )
    positions = int(shard.position_offsets[row + 1] - shard.position_offsets[row])
    try:
        file.verify(row)
        if spec is not None:
            file.columns.of(row).check(spec, positions, where=f"{file.path}: document {row}")
    except InvalidRecordError as error:
        raise CaskCorruptionError(f"{error}. {_ADVICE}.") from error


def publish_hints(
    files: FileOperations, cask: Path, entry: ShardEntry, columns: ShardColumns, spec: HintSpec | None
) -> ShardEntry:
    """Write the file beside a shard, durably, before its entry is.

    Args:
        files: The file system.
        cask: The cask's folder.
        entry: Of the shard, whose file has its name.
        columns: What the shard holds.
        spec: Of the cask's hints.

    Returns:
        The entry that describes it; the same one where there are no hints.

    Raises:
        CaskError: More rows than a file can hold.
        CaskWriteError: Disk full or broken.
    """
    if spec is None or columns.hints is None:
        return entry
    described = list[HintsFile]()

    def write(file: BinaryIO) -> str:
        described.append(write_hints(file, entry, columns, spec))
        return entry.hints_name

    publish_file(files, cask / SHARDS_NAME, write)
    return entry.model_copy(update={"hints": described[0]})


def write_hints(file: BinaryIO, entry: ShardEntry, columns: ShardColumns, spec: HintSpec) -> HintsFile:
    """Write a shard's hints, which `columns` have, to an open file, and describe it; errors as `publish_hints`."""
    assert columns.hints is not None
    schema = _schema(entry, spec, columns.hints.rows.width)
    sink = _HashingSink(file)
    with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema, options=write_options()) as writer:
        writer.write_batch(_batch(columns.document_ids, columns.hints, schema))
    return HintsFile(bytes=sink.size, sha256=sink.sha256.hexdigest())


def take_hints(files: FileOperations, path: Path, cask: Path, entry: ShardEntry, *, link: bool = True) -> None:
    """Give a shard that is taken over whole the file of hints that lies beside it.

    Args:
        files: The file system.
        path: The file, which is the caller's to have proved.
        cask: Folder of the cask that takes it.
        entry: Of the shard, in either cask.
        link: Share the file where the file system can.

    Raises:
        CaskNotFoundError: It is gone.
        CaskWriteError: Disk full or broken.
    """
    with _missing_explained(path, entry):
        with clear_errors(cask):
            files.unlink(cask / SHARDS_NAME / entry.hints_name)  # the leftover of a writer that died
        link_or_copy(files, path, cask / SHARDS_NAME, entry.hints_name, link=link)


def copy_hints(path: Path, entry: ShardEntry, file: BinaryIO | None) -> HintsFile:
    """Prove the file of hints beside a shard, and copy it on the way.

    Args:
        path: The file.
        entry: Of the shard.
        file: Takes the bytes; None: they are only proved.

    Raises:
        HintsDroppedError: The shard has none.
        CaskNotFoundError: It is gone.
        CaskCorruptionError: It has another size or SHA-256 than the entry says.
        CaskReadError: The operating system refuses.
    """
    described, digest = _described(path.parent.parent, entry), hashlib.sha256()
    with _missing_explained(path, entry):
        _require_size(path, described, size_of(path))
        with open_regular(path) as source:
            while block := source.read(_BLOCK):
                digest.update(block)
                if file is not None:
                    file.write(block)
    if (computed := digest.hexdigest()) != described.sha256:
        raise CaskCorruptionError(f"{path}: SHA-256 should be {described.sha256}, it is {computed}. {_ADVICE}.")
    return described


class _HashingSink:
    """Hashes and counts what goes into a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, content: Any, /) -> int:
        view = memoryview(content)
        self.sha256.update(view)
        self._file.write(view)
        self.size += view.nbytes
        return view.nbytes


def _schema(entry: ShardEntry, spec: HintSpec, width: int) -> Any:
    fields = [pa.field("document_id", pa.binary(32), nullable=False), pa.field("checksum", pa.uint64(), nullable=False)]
    for name, (dtype, shape) in hint_layout(spec, width).items():
        item = pa.field("item", _ELEMENTS[dtype.str], nullable=False)
        row = pa.field("item", pa.list_(item, int(np.prod(shape))), nullable=False)
        fields.append(pa.field(name, pa.list_(row), nullable=False))
    metadata = {
        "logitcask.format": _FORMAT,
        "logitcask.version": _VERSION,
        "logitcask.identity": entry.identity,
        "logitcask.shard": entry.name,
        "logitcask.width": str(width),
    }
    return pa.schema(fields, metadata=metadata)


def _batch(document_ids: NDArray[np.uint8], hints: HintColumns, schema: Any) -> Any:
    documents = len(hints.checksums)
    if hints.rows.num_rows > MAX_VALUES:
        raise CaskError(f"hints of more than {MAX_VALUES} positions; publish fewer documents at a time")
    offsets = _buffer(hints.offsets.astype("<i4"))
    arrays = [
        pa.Array.from_buffers(pa.binary(32), documents, [None, _buffer(document_ids)]),
        pa.Array.from_buffers(pa.uint64(), documents, [None, _buffer(hints.checksums)]),
    ]
    for name, array in hints.rows.arrays.items():
        listed = schema.field(name).type
        flat = pa.Array.from_buffers(listed.value_type.value_type, array.size, [None, _buffer(array)])
        rows = pa.Array.from_buffers(listed.value_type, len(array), [None], children=[flat])
        arrays.append(pa.Array.from_buffers(listed, documents, [None, offsets], children=[rows]))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _buffer(array: NDArray[Any]) -> Any:
    return pa.py_buffer(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _parsed(path: Path, batch: Any, entry: ShardEntry, spec: HintSpec) -> HintFile:
    metadata = {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (batch.schema.metadata or {}).items()
    }
    kind, version = metadata.get("logitcask.format"), metadata.get("logitcask.version")
    if (kind, version) != (_FORMAT, _VERSION):
        raise CaskCorruptionError(
            f"{path}: readable, but not hints of version {_VERSION} (its metadata says {kind!r}, version {version!r}). "
            f"{_ADVICE}."
        )
    for key, expected in (("logitcask.identity", entry.identity), ("logitcask.shard", entry.name)):
        if metadata.get(key) != expected:
            raise CaskCorruptionError(
                f"{path}: {key} is {metadata.get(key)!r}, expected {expected!r}: these are another shard's hints. "
                f"{_ADVICE}."
            )
    stated = metadata.get("logitcask.width", "")
    width = int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 10 else 0
    if not 1 <= width <= MAX_WIDTH or not batch.schema.equals(_schema(entry, spec, width), check_metadata=True):
        raise CaskCorruptionError(
            f"{path}: columns are {', '.join(f'{field.name}: {field.type}' for field in batch.schema)} of width "
            f"{stated!r}, which are not those of hints {spec.model_dump(mode='json')}. {_ADVICE}."
        )
    if batch.num_rows != entry.documents:
        raise CaskCorruptionError(
            f"{path}: hints of {batch.num_rows} documents, its shard has {entry.documents}. {_ADVICE}."
        )
    return _opened(path, batch, spec, width)


def _opened(path: Path, batch: Any, spec: HintSpec, width: int) -> HintFile:
    documents = batch.num_rows
    arrays: dict[str, NDArray[Any]] = {}
    cuts = list[NDArray[np.int32]]()
    for name, (dtype, shape) in hint_layout(spec, width).items():
        listed = batch.column(name)
        rows = unsliced(path, name, listed)
        cut = view_of(path, name, listed.buffers()[1], np.dtype("<i4"), documents + 1)
        cuts.append(cut)
        if cut[0] or (cut[1:] < cut[:-1]).any() or cut[-1] != len(rows) or not np.array_equal(cut, cuts[0]):
            raise CaskCorruptionError(
                f"{path}: offsets of column {name} do not cut its {len(rows)} rows into {documents} documents as the "
                f"other columns do. {_ADVICE}."
            )
        flat = view_of(path, name, rows.buffers()[-1], dtype, len(rows) * int(np.prod(shape)))
        arrays[name] = flat.reshape(len(rows), *shape)
    ids = view_of(path, "document_id", batch.column(0).buffers()[1], np.dtype(np.uint8), documents * 32)
    checksums = view_of(path, "checksum", batch.column(1).buffers()[1], np.dtype("<u8"), documents)
    columns = HintColumns(checksums=checksums, offsets=cuts[0].astype(np.int64), rows=HintRows.of_arrays(arrays, width))
    return HintFile(path=path, document_ids=ids.reshape(documents, 32), columns=columns)


def _described(cask: Path, entry: ShardEntry) -> HintsFile:
    if entry.hints is None:
        raise HintsDroppedError(dropped(str(cask), entry))
    return entry.hints


def dropped(place: str, entry: ShardEntry) -> str:
    """What to say of a shard without a file of hints."""
    return (
        f"{place}: shard {entry.name} has no hints: they were dropped (`logitcask cask drop-hints`, or a repair or a "
        "copy that left them out). Take them from another copy of the cask, or capture into a new one"
    )


def _require_size(path: Path, described: HintsFile, size: int) -> None:
    if size != described.bytes:
        raise CaskCorruptionError(f"{path}: should have {described.bytes} bytes, it has {size}. {_ADVICE}.")


@contextmanager
def _missing_explained(path: Path, entry: ShardEntry) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, CaskError):
            raise
        raise CaskNotFoundError(f"{path}: the hints of shard {entry.name} are missing. {_ADVICE}.") from error
