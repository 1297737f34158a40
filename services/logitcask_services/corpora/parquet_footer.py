"""Looks at a Parquet file's footer before a library reads it, which makes objects of all that is in it, by recursion.

A footer is a Thrift struct in the compact form (FileMetaData of the Parquet format): its second field is the schema, a
list of columns, lists and records in the order in which they lie in each other. A few megabytes hold a schema so deep
that reading it ends the process, or so wide that its columns take all memory. Every field of the footer is passed over
once, since a reader takes the last schema where there are several.
"""

from enum import IntEnum
from pathlib import Path
from typing import Final

from logitcask_schemas.errors import LogitcaskError

MAX_FOOTER_BYTES: Final = 16 << 20
"""In memory a footer is some ten times as large, and it is read whole."""
MAX_ELEMENTS: Final = 2000
"""Columns, lists and records of a schema. Each column that is read has a buffer."""
MAX_LEVELS: Final = 48
"""Of the schema's elements in each other. A list is two, and a line has at most `parquet_lines.MAX_DEPTH` of them."""
_MOST_OPEN: Final = 64
"""Structs, lists and maps of Thrift in each other; Parquet's are 8."""
_VARINT_BYTES: Final = 10
_SCHEMA, _NUM_CHILDREN = 2, 5
"""Numbers of the fields that count, of FileMetaData and of SchemaElement."""


class Kind(IntEnum):
    """Types of the compact form."""

    TRUE = 1
    FALSE = 2
    BYTE = 3
    I16 = 4
    I32 = 5
    I64 = 6
    DOUBLE = 7
    BINARY = 8
    LIST = 9
    SET = 10
    MAP = 11
    STRUCT = 12


_NUMBERS: Final = frozenset({Kind.I16, Kind.I32, Kind.I64})
_SIZES: Final[dict[int, int]] = {Kind.TRUE: 0, Kind.FALSE: 0, Kind.BYTE: 1, Kind.DOUBLE: 8}
"""Bytes of a field's value; a bool is its kind."""
_IN_LISTS: Final[dict[int, int]] = {Kind.TRUE: 1, Kind.FALSE: 1, Kind.BYTE: 1, Kind.DOUBLE: 8}
"""Bytes of a value in a list or a set."""


class ParquetError(LogitcaskError, ValueError):
    """A Parquet file that no corpus can be made of."""


def require_readable_footer(path: Path) -> None:
    """Raise ParquetError where a file is encrypted, or its footer would not fit into memory, or onto the stack.

    What has not the end of a Parquet file passes: who reads it says what is wrong.
    """
    with path.open("rb") as file:
        end = max(path.stat().st_size - 8, 0)
        file.seek(end)
        tail = file.read(8)
        size, magic = int.from_bytes(tail[:4], "little"), tail[4:]
        if magic == b"PARE":
            raise ParquetError("the Parquet file is encrypted; write it without encryption")
        if magic != b"PAR1":
            return
        if size > MAX_FOOTER_BYTES:
            raise ParquetError(
                f"the Parquet file has a footer of {size} bytes, more than {MAX_FOOTER_BYTES}: too many row groups or "
                "columns; write it with larger row groups (row_group_size=10_000), and the columns that are needed"
            )
        file.seek(max(end - size, 0))
        footer = file.read(size)
    try:
        _pass_over(footer)
    except IndexError as error:
        raise _unreadable(len(footer)) from error


def _pass_over(footer: bytes) -> None:
    """Go through a footer's fields. Raises ParquetError, and IndexError where it ends before they do."""
    at = number = 0
    while head := footer[at]:
        number, at = _field(footer, at, number)
        if number == _SCHEMA and head & 0x0F == Kind.LIST:
            at = _pass_schema(footer, at)
        else:
            at = _pass_value(footer, at, head & 0x0F)


def _pass_schema(footer: bytes, at: int) -> int:
    """Where the list of a schema's elements ends. Raises ParquetError where they are too many, or too deep."""
    size, kind, at = _list_head(footer, at)
    if kind != Kind.STRUCT:
        raise _unreadable(at)
    if size > MAX_ELEMENTS:
        raise ParquetError(
            f"the Parquet file has {size} columns, lists and records in its schema, more than {MAX_ELEMENTS}; write it "
            "with the columns that are needed"
        )
    left = [1]
    """Elements still to come at each level; the root is alone in the first."""
    for _ in range(size):
        while left and not left[-1]:
            left.pop()
        if not left:
            raise _unreadable(at)
        left[-1] -= 1
        children, at = _children_of_element(footer, at)
        if children > 0:
            left.append(children)
        if len(left) > MAX_LEVELS:
            raise ParquetError(
                f"the Parquet file has a column of more than {MAX_LEVELS} groups (lists and records) in each other"
            )
    return at


def _children_of_element(footer: bytes, at: int) -> tuple[int, int]:
    """How many elements lie in this one, and where it ends."""
    number = children = 0
    while head := footer[at]:
        number, at = _field(footer, at, number)
        if number == _NUM_CHILDREN and head & 0x0F == Kind.I32:
            children, at = _signed(footer, at)
        else:
            at = _pass_value(footer, at, head & 0x0F)
    return children, at + 1


def _pass_value(footer: bytes, at: int, kind: int) -> int:
    """Where a value ends. By a loop of few steps: a footer has millions of them."""
    inner: list[tuple[int, int]] = []
    """Kinds of keys and values of each list, set or map that is open; of a struct, none."""
    left: list[int] = []
    """Values still to come of each."""
    while True:
        if kind in _NUMBERS:
            while footer[at] & 0x80:
                at += 1
            at += 1
        elif kind == Kind.BINARY:
            size, at = _varint(footer, at)
            at += size
        elif kind in _SIZES:
            at += _SIZES[kind]
        elif kind == Kind.STRUCT:
            inner.append((0, 0))
            left.append(-1)
        elif kind in (Kind.LIST, Kind.SET):
            size, of, at = _list_head(footer, at)
            if of in _IN_LISTS:
                at += size * _IN_LISTS[of]
            else:
                inner.append((of, of))
                left.append(size)
        elif kind == Kind.MAP:
            size, at = _varint(footer, at)
            if size:
                kinds, at = footer[at], at + 1
                inner.append((kinds & 0x0F, kinds >> 4))
                left.append(2 * size)
        else:
            raise _unreadable(at)
        if len(left) > _MOST_OPEN:
            raise _unreadable(at)
        while left:  # the next value of what is open
            if (more := left[-1]) > 0:
                left[-1] = more - 1
                kind = inner[-1][more & 1 ^ 1]
                kind = Kind.BYTE if kind in (Kind.TRUE, Kind.FALSE) else kind
                break
            if more < 0 and (head := footer[at]):
                at = _field(footer, at, 0)[1]
                kind = head & 0x0F
                break
            at += more < 0  # the byte that ends a struct
            left.pop()
            inner.pop()
        else:
            return at


def _field(footer: bytes, at: int, before: int) -> tuple[int, int]:
    """Number of a struct's next field, and where its value begins."""
    if delta := footer[at] >> 4:
        return before + delta, at + 1
    return _signed(footer, at + 1)


def _list_head(footer: bytes, at: int) -> tuple[int, int, int]:
    """Number and kind of a list's values, and where they begin."""
    head = footer[at]
    size, at = _varint(footer, at + 1) if head >> 4 == 0x0F else (head >> 4, at + 1)
    return size, head & 0x0F, at


def _varint(footer: bytes, at: int) -> tuple[int, int]:
    """A number without a sign, and where it ends."""
    number = 0
    for shift in range(0, 7 * _VARINT_BYTES, 7):
        byte, at = footer[at], at + 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _unreadable(at)


def _signed(footer: bytes, at: int) -> tuple[int, int]:
    """A number with a sign (zigzag), and where it ends."""
    number, at = _varint(footer, at)
    return (number >> 1) ^ -(number & 1), at


def _unreadable(at: int) -> ParquetError:
    return ParquetError(f"the Parquet file cannot be read: its footer is none (byte {at} of it)")
