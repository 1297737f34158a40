"""Shards as Parquet files, for tools that read tables: the Arrow carrier's record batch in one row group.

Every page carries a CRC-32 that is checked on reading. Parquet stores lists as one value and two levels per entry, so a
file has to be decoded as a whole before its first document can be read: to look around in with any engine, to keep and
to ship, not to train from.
"""

from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from logitcask_schemas.cask.carriers.arrow import (
    REPAIR_ADVICE,
    arrow_batch,
    arrow_schema,
    columns_of_batch,
    require_schema,
)
from logitcask_schemas.cask.carriers.carrier import ByteSink
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.errors import CaskCorruptionError

_COMPRESSION_LEVEL: Final = 3


class ParquetCarrier:
    """The carrier for tables. See `Carrier` for the contract and docs/format.md for the bytes."""

    name: Final = "parquet"
    suffix: Final = ".parquet"
    max_open: Final = 4
    """An open shard lies decoded in memory."""

    def write(self, columns: ShardColumns, layout: RecordLayout, identity: str, file: ByteSink) -> None:
        """Write a whole shard as a Parquet file of one row group."""
        # Here and below: importing Parquet takes 30 ms, which `logitcask --help` and Arrow casks need not pay.
        import pyarrow.parquet as pq

        schema = arrow_schema(layout, identity, columns.lists.names)
        batch = arrow_batch(columns, layout, schema)
        with pq.ParquetWriter(
            pa.PythonFile(file, mode="w"),
            schema,
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer:
            writer.write_batch(batch, row_group_size=batch.num_rows)

    def open(self, path: Path, layout: RecordLayout, identity: str, content: memoryview | None = None) -> ShardColumns:
        """A shard in memory; the whole file is read and decoded."""
        import pyarrow.parquet as pq

        try:
            source = path if content is None else pa.BufferReader(pa.py_buffer(content))
            with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file:
                # The plain key-value metadata counts, not the copy inside pyarrow's own serialized schema.
                schema = file.schema_arrow.with_metadata(file.metadata.metadata or {})
                require_schema(path, schema, layout, identity)
                batch = _only_batch(path, file.read(use_threads=False))
            return columns_of_batch(path, batch, layout)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the operating system's; without a number it is Arrow's, about what it read
            raise CaskCorruptionError(f"{path}: not a readable Parquet file ({error}). {REPAIR_ADVICE}.") from error


def _only_batch(path: Path, table: Any) -> Any:
    batches = table.combine_chunks().to_batches()
    if len(batches) != 1:
        raise CaskCorruptionError(f"{path}: {table.num_rows} rows in {len(batches)} batches, expected one batch")
    batches[0].validate()
    return batches[0]
