"""Writing the file of a shard's hints beside it, and copying one; see `hint_file`."""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.arrow import write_options
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.hint_columns import HintColumns
from logitcask_schemas.cask.format.layout import SHARDS_NAME
from logitcask_schemas.cask.format.shard_entry import MAX_VALUES, HintsFile, ShardEntry
from logitcask_schemas.cask.hint_file import ADVICE, described_hints, hint_schema, missing_explained, require_size
from logitcask_schemas.cask.storage.files import (
    FileOperations,
    clear_errors,
    link_or_copy,
    open_regular,
    publish_file,
    size_of,
)
from logitcask_schemas.cask.storage.hashing_sink import HashingSink
from logitcask_schemas.errors import CaskCorruptionError, CaskError
from logitcask_schemas.record.hint_spec import HintSpec

_BLOCK: Final = 1 << 20


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
    schema = hint_schema(entry, spec, columns.hints.rows.width)
    sink = HashingSink(file)
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
    with missing_explained(path, entry):
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
    described, digest = described_hints(path.parent.parent, entry), hashlib.sha256()
    with missing_explained(path, entry):
        require_size(path, described, size_of(path))
        with open_regular(path) as source:
            while block := source.read(_BLOCK):
                digest.update(block)
                if file is not None:
                    file.write(block)
    if (computed := digest.hexdigest()) != described.sha256:
        raise CaskCorruptionError(f"{path}: SHA-256 should be {described.sha256}, it is {computed}. {ADVICE}.")
    return described


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
