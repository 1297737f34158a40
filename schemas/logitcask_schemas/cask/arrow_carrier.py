"""Shards as Arrow IPC files: one record batch, one row per document, nothing compressed.

In memory a nested list is a flat array of values and an array of offsets, and an uncompressed IPC file is that memory
on disk: a shard opens as a handful of numpy views into the page cache, whatever its size. Columns start at multiples
of 8 bytes, as the format guarantees; more would buy nothing, since documents start anywhere inside a column. Never
ask Arrow for Python objects of these columns (`to_pylist` costs a thousand times the read).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from logitcask_schemas.cask.arrow_columns import (
    REPAIR_ADVICE,
    arrow_batch,
    arrow_schema,
    columns_of_batch,
    documents_of_batch,
    require_schema,
)
from logitcask_schemas.cask.carrier import ByteSink
from logitcask_schemas.cask.columns import ShardColumns
from logitcask_schemas.cask.document_table import ShardDocuments
from logitcask_schemas.cask.layout import RecordLayout
from logitcask_schemas.errors import CaskCorruptionError


class ArrowCarrier:
    """The carrier to train from. See `Carrier` for the contract and docs/format.md for the bytes."""

    name: Final = "arrow"
    suffix: Final = ".arrow"
    max_open: Final = 4096
    """Linux allows 65,530 mappings per process."""

    def write(self, columns: ShardColumns, layout: RecordLayout, identity: str, file: ByteSink) -> None:
        """See `Carrier.write`."""
        schema = arrow_schema(layout, identity, answers=columns.answers is not None)
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema, options=_write_options()) as writer:
            writer.write_batch(arrow_batch(columns, layout, schema))

    def open(self, path: Path, layout: RecordLayout, identity: str, content: memoryview | None = None) -> ShardColumns:
        """See `Carrier.open`. The arrays are views of the mapped file, which stays mapped while any of them lives."""
        with _arrow_explained(path):
            return columns_of_batch(path, _batch(path, layout, identity, content), layout)

    def open_documents(self, path: Path, layout: RecordLayout, identity: str, content: memoryview) -> ShardDocuments:
        """Ids and lengths, as views of `content`; what the other columns hold is proved when the shard is opened.

        Raises:
            CaskCorruptionError: As `open`, as far as these tell.
        """
        with _arrow_explained(path):
            return documents_of_batch(path, _batch(path, layout, identity, content), layout)


def _batch(path: Path, layout: RecordLayout, identity: str, content: memoryview | None) -> Any:
    """The one record batch of a shard's file, which is mapped where its content is not given."""
    if content is not None:
        buffer = pa.py_buffer(content)
    else:
        with pa.memory_map(str(path)) as source:
            # Closing the source gives the file descriptor back; the buffer keeps the mapping itself alive.
            buffer = source.read_buffer()
    # From a buffer, not from the file: a file's footer is read by Arrow's thread pool, which costs two thread switches
    # per shard and does not exist in a forked worker.
    reader = pa.ipc.open_file(pa.BufferReader(buffer))
    if reader.num_record_batches != 1:
        raise CaskCorruptionError(f"{path}: {reader.num_record_batches} record batches, expected 1")
    batch = reader.get_batch(0)
    batch.validate()
    require_schema(path, batch.schema, layout, identity)
    return batch


@contextmanager
def _arrow_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's; without a number it is Arrow's, about what it read
        # The last one comes from damaged names: Arrow decodes them only when they are asked for.
        raise CaskCorruptionError(f"{path}: not a readable Arrow IPC file ({error}). {REPAIR_ADVICE}.") from error


def _write_options() -> Any:
    return pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V5, compression=None, use_threads=False)
