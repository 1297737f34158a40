"""A Parquet file as lines of JSON: one line for each row, row group by row group, a few rows at a time in memory.

Columns that JSON can hold are fields of the line under their own names; others (binary, times, decimals) are left out.
A null is left out, since Parquet cannot tell it from a field that is not there; the `content` of a message stays null.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from logitcask_schemas.errors import LogitcaskError

BATCH_ROWS = 64
"""Few, since a long value that stands in every row is small in the file and large in each row of a batch."""
BATCH_VALUES = 1 << 18
"""Of all columns, in a batch of average rows."""
BATCH_BYTES = 8 << 20
MAX_GROUP_VALUES = 1 << 27
"""Of a row group. Runs of equal values are a few bytes of a file, so this bounds what one row may cost in memory."""
BATCH_WORST_BYTES = 256 << 20
"""Of a batch whose rows all hold the largest value that they could, which the file has once."""
MAX_DICTIONARY_BYTES = 64 << 20
"""Of the values that a column of a row group refers to; writers stop at about 1 MiB."""
MAX_FOOTER_BYTES = 16 << 20
"""In memory a footer is some ten times as large, and it is read whole."""
MAX_DEPTH = 16
"""Of lists and records in each other; `messages` with tool calls have 6."""
BLOCK_BYTES = 1 << 20
BUFFER_BYTES = 1 << 16
MAX_COLUMNS = 2000
"""Of all, those within lists and records, too: each that is read has a buffer."""
MAX_FOOTER_STRINGS, MAX_FOOTER_ITEMS = 32 << 20, 1 << 17
"""Bytes of a text; entries of a list, such as the row groups, or the schema's elements, which all become objects."""


class ParquetError(LogitcaskError, ValueError):
    """A Parquet file that no corpus can be made of."""


def lines_of_parquet(path: Path) -> Iterator[bytes]:
    """Blocks of whole lines. Raises ParquetError where the file is damaged, or has no column that JSON can hold."""
    _require_readable_footer(path)
    try:
        with (
            path.open("rb") as file,
            pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False, **_FOOTER) as parquet,
        ):
            if (count := parquet.metadata.num_columns) > MAX_COLUMNS:
                raise ParquetError(
                    f"the Parquet file has {count} columns, more than {MAX_COLUMNS}; write those that are needed"
                )
            columns = _columns(parquet.schema_arrow)
            for group in range(parquet.num_row_groups):
                yield from _group_lines(parquet, group, columns, file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ParquetError(f"the Parquet file cannot be read: {' '.join(str(error).split())[:500]}") from error


def _require_readable_footer(path: Path) -> None:
    """Raise ParquetError where the file is encrypted, or its footer would not fit into memory."""
    with path.open("rb") as file:
        start = max(path.stat().st_size - 8, 0)
        file.seek(start)
        tail = file.read(8)
    size, magic = int.from_bytes(tail[:4], "little"), tail[4:]
    if magic == b"PARE":
        raise ParquetError("the Parquet file is encrypted; write it without encryption")
    if magic == b"PAR1" and size > MAX_FOOTER_BYTES:
        raise ParquetError(
            f"the Parquet file has a footer of {size} bytes, more than {MAX_FOOTER_BYTES}: too many row groups or "
            "columns; write it with larger row groups (row_group_size=10_000), and the columns that are needed"
        )


_FOOTER: dict[str, Any] = {
    "thrift_string_size_limit": MAX_FOOTER_STRINGS,
    "thrift_container_size_limit": MAX_FOOTER_ITEMS,
}


def _columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that go into lines. Raises ParquetError."""
    columns = [field.name for field in schema if _json_holds(field.type)]
    if not columns:
        names = ", ".join(f"{name[:40]} ({schema.field(at).type})"[:80] for at, name in enumerate(schema.names[:16]))
        raise ParquetError(
            f"the Parquet file has the columns {names or 'none'}; expected `text`, `messages`, "
            "`input_ids`, or `prompt` with `completion`"
        )
    if len(set(schema.names)) < len(schema.names):
        raise ParquetError("the Parquet file has two columns of one name; rename one")
    return columns


def _json_holds(kind: pa.DataType, depth: int = 0) -> bool:
    """Whether values of an Arrow type are values of JSON. Raises ParquetError where it is nested too deep."""
    if depth > MAX_DEPTH:
        raise ParquetError(f"the Parquet file has a column of more than {MAX_DEPTH} lists and records in each other")
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _json_holds(kind.value_type, depth + 1)
    if types.is_struct(kind):
        return all(_json_holds(kind.field(at).type, depth + 1) for at in range(kind.num_fields))
    if types.is_dictionary(kind):
        return _json_holds(kind.value_type, depth + 1)
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )


def _group_lines(parquet: pq.ParquetFile, group: int, columns: list[str], file: BinaryIO) -> Iterator[bytes]:
    metadata = parquet.metadata.row_group(group)
    chunks, names = map(metadata.column, range(metadata.num_columns)), frozenset(columns)
    wanted = [chunk for chunk in chunks if _is_within(chunk.path_in_schema, names)]
    values = sum(column.num_values for column in wanted)
    if values > MAX_GROUP_VALUES:
        raise ParquetError(
            f"row group {group} of the Parquet file has {values} values, more than {MAX_GROUP_VALUES}; write it with "
            "smaller row groups (row_group_size=10_000)"
        )
    size, count = sum(column.total_uncompressed_size for column in wanted), max(metadata.num_rows, 1)
    worst = sum(_repeatable_bytes(column, file) for column in wanted)
    rows = min(BATCH_ROWS, BATCH_VALUES * count // max(values, 1), BATCH_BYTES * count // max(size, 1))
    rows = max(1, min(rows, BATCH_WORST_BYTES // max(worst, 1)))
    block = bytearray()
    for batch in parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False):
        for entry in batch.to_pylist():
            block += json.dumps(_without_nulls(entry), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            if len(block) >= BLOCK_BYTES:
                yield bytes(block)
                block.clear()
    if block:
        yield bytes(block)


def _is_within(path: str, names: frozenset[str]) -> bool:
    """Whether a column is one of these or lies within one; a name may have dots, as the path has between names."""
    parts = path.split(".")
    return any(".".join(parts[:count]) in names for count in range(1, len(parts) + 1))


def _repeatable_bytes(column: pq.ColumnChunkMetaData, file: BinaryIO) -> int:
    """Bytes that a single value of a column may have although the file holds it once for many rows.

    Raises ParquetError where they are too many to be held.
    """
    if "DELTA_BYTE_ARRAY" in column.encodings:  # a value is what it differs by from the one before
        size: int = column.total_uncompressed_size
    else:
        starts = (column.dictionary_page_offset, column.data_page_offset)
        size = _dictionary_bytes(file, min(start for start in starts if start))
    if size > MAX_DICTIONARY_BYTES:
        raise ParquetError(
            f"column {column.path_in_schema[:40]} of the Parquet file has a dictionary of {size} bytes, more than "
            f"{MAX_DICTIONARY_BYTES}; write it with use_dictionary=False, or with smaller row groups"
        )
    return size


def _dictionary_bytes(file: BinaryIO, start: int) -> int:
    """Unpacked bytes of the dictionary page that starts a column of a row group; 0 where another page does.

    A page's header is a Thrift struct in the compact form. Its first fields are type and unpacked size, each a byte
    0x15 (the next field, an i32) and a zigzag varint.
    """
    file.seek(start)
    header = file.read(16)
    numbers, at = list[int](), 0
    for _ in range(2):
        if header[at : at + 1] != b"\x15":
            return 0  # no page's header: reading it will say what is wrong
        number, shift, at = 0, 0, at + 1
        while at < len(header):
            number |= (header[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not header[at - 1] & 0x80:
                break
        numbers.append((number >> 1) ^ -(number & 1))
    kind, size = numbers
    return max(size, 0) if kind == 2 else 0  # PageType.DICTIONARY_PAGE


def _without_nulls(value: Any) -> Any:
    """Without the fields that are null."""
    if isinstance(value, dict):
        return {
            name: _without_nulls(inner)
            for name, inner in value.items()
            if inner is not None or (name == "content" and value.get("role") is not None)
        }
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
