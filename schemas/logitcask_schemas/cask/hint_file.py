"""shards/<name>.hints.arrow: the hints of a shard's documents, an Arrow file of its own beside the shard.

So training without hints, which are a hundred times a record, never touches their bytes, and they may be dropped. The
file is made before the shard's entry, which gives its size and SHA-256; it is the same whatever carrier the shard has.
`hint_publication` writes it.

One row per document, in the shard's order; see docs/format.md, section 4.6.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.arrow import arrow_explained, only_batch, unsliced, view_of
from logitcask_schemas.cask.format.hint_columns import HintColumns, hints_checksum
from logitcask_schemas.cask.format.layout import SHARDS_NAME
from logitcask_schemas.cask.format.shard_entry import HintsFile, ShardEntry
from logitcask_schemas.cask.shard import Shard
from logitcask_schemas.cask.storage.files import read_whole, reads_explained, size_of
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
_ARROW_MAGIC_BYTES: Final = 8
"""Before the schema: `ARROW1` and two zeros."""
_FORMAT: Final = "logitcask-hints"
_VERSION: Final = "1"
ADVICE: Final = (
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
                f"bytes give {computed:016x}. {ADVICE}."
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
    with missing_explained(path, entry), reads_explained(path), arrow_explained(path):
        return _parsed(path, only_batch(path, None), entry, spec)


def require_hint_file(cask: Path, entry: ShardEntry) -> Path:
    """The file beside a shard, which is there and has its size; it is not opened. Errors as `open_hints`."""
    path, described = hints_path(cask, entry), described_hints(cask, entry)
    with missing_explained(path, entry):
        require_size(path, described, size_of(path))
    return path


def read_hints(cask: Path, entry: ShardEntry, spec: HintSpec) -> HintFile:
    """Read the file into memory, prove its SHA-256, and open it there; for whoever expects damage.

    Raises:
        As `open_hints`; CaskCorruptionError also where the SHA-256 is another one.
    """
    path, described, digest = hints_path(cask, entry), described_hints(cask, entry), hashlib.sha256()
    with missing_explained(path, entry):
        require_size(path, described, size_of(path))
        content = read_whole(path, described.bytes, digest.update)
        require_size(path, described, len(content))
        if (computed := digest.hexdigest()) != described.sha256:
            raise CaskCorruptionError(f"{path}: SHA-256 should be {described.sha256}, it is {computed}. {ADVICE}.")
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
            f"{file.path}: document {row} is {stored.hex()[:16]}, in the shard it is {expected.hex()[:16]}. {ADVICE}."
        )
    positions = int(shard.position_offsets[row + 1] - shard.position_offsets[row])
    try:
        file.verify(row)
        if spec is not None:
            file.columns.of(row).check(spec, positions, where=f"{file.path}: document {row}")
    except InvalidRecordError as error:
        raise CaskCorruptionError(f"{error}. {ADVICE}.") from error


def hint_schema(entry: ShardEntry, spec: HintSpec, width: int) -> Any:
    """The Arrow schema of a shard's file, for vectors of the teacher of so many numbers."""
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


def width_in_head(where: str, head: bytes) -> int:
    """How many numbers a vector of a file's hints has, from the file's first bytes.

    Args:
        where: The file, for people.
        head: As much of it as its schema takes, or more.

    Raises:
        CaskCorruptionError: They are no start of such a file.
    """
    try:
        metadata = pa.ipc.read_schema(pa.BufferReader(head[_ARROW_MAGIC_BYTES:])).metadata or {}
        return int(metadata[b"logitcask.width"])
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise CaskCorruptionError(f"{where}: does not start as a file of hints: {error}") from error


def _parsed(path: Path, batch: Any, entry: ShardEntry, spec: HintSpec) -> HintFile:
    metadata = {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (batch.schema.metadata or {}).items()
    }
    kind, version = metadata.get("logitcask.format"), metadata.get("logitcask.version")
    if (kind, version) != (_FORMAT, _VERSION):
        raise CaskCorruptionError(
            f"{path}: readable, but not hints of version {_VERSION} (its metadata says {kind!r}, version {version!r}). "
            f"{ADVICE}."
        )
    for key, expected in (("logitcask.identity", entry.identity), ("logitcask.shard", entry.name)):
        if metadata.get(key) != expected:
            raise CaskCorruptionError(
                f"{path}: {key} is {metadata.get(key)!r}, expected {expected!r}: these are another shard's hints. "
                f"{ADVICE}."
            )
    stated = metadata.get("logitcask.width", "")
    width = int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 10 else 0
    if not 1 <= width <= MAX_WIDTH or not batch.schema.equals(hint_schema(entry, spec, width), check_metadata=True):
        raise CaskCorruptionError(
            f"{path}: columns are {', '.join(f'{field.name}: {field.type}' for field in batch.schema)} of width "
            f"{stated!r}, which are not those of hints {spec.model_dump(mode='json')}. {ADVICE}."
        )
    if batch.num_rows != entry.documents:
        raise CaskCorruptionError(
            f"{path}: hints of {batch.num_rows} documents, its shard has {entry.documents}. {ADVICE}."
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
                f"other columns do. {ADVICE}."
            )
        flat = view_of(path, name, rows.buffers()[-1], dtype, len(rows) * int(np.prod(shape)))
        arrays[name] = flat.reshape(len(rows), *shape)
    ids = view_of(path, "document_id", batch.column(0).buffers()[1], np.dtype(np.uint8), documents * 32)
    checksums = view_of(path, "checksum", batch.column(1).buffers()[1], np.dtype("<u8"), documents)
    columns = HintColumns(checksums=checksums, offsets=cuts[0].astype(np.int64), rows=HintRows.of_arrays(arrays, width))
    return HintFile(path=path, document_ids=ids.reshape(documents, 32), columns=columns)


def described_hints(cask: Path, entry: ShardEntry) -> HintsFile:
    """What an entry says of the file; HintsDroppedError where the shard has none."""
    if entry.hints is None:
        raise HintsDroppedError(dropped(str(cask), entry))
    return entry.hints


def dropped(place: str, entry: ShardEntry) -> str:
    """What to say of a shard without a file of hints."""
    return (
        f"{place}: shard {entry.name} has no hints: they were dropped (`logitcask cask drop-hints`, or a repair or a "
        "copy that left them out). Take them from another copy of the cask, or capture into a new one"
    )


def require_size(path: Path, described: HintsFile, size: int) -> None:
    """Raise CaskCorruptionError unless the file has the size that its entry says."""
    if size != described.bytes:
        raise CaskCorruptionError(f"{path}: should have {described.bytes} bytes, it has {size}. {ADVICE}.")


@contextmanager
def missing_explained(path: Path, entry: ShardEntry) -> Iterator[None]:
    """Raise CaskNotFoundError, with what to do, for a file of hints that is not there."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, CaskError):
            raise
        raise CaskNotFoundError(f"{path}: the hints of shard {entry.name} are missing. {ADVICE}.") from error
