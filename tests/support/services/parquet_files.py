"""Parquet files of no rows whose footers are written here, as no library writes them: deep or wide."""

from collections.abc import Sequence

STOP = b"\x00"


def varint(number: int) -> bytes:
    """Thrift's, of the compact form."""
    content = b""
    while number >= 0x80:
        content += bytes([number & 0x7F | 0x80])
        number >>= 7
    return content + bytes([number])


def group(name: str, children: int) -> bytes:
    """An optional record of the schema."""
    return b"\x35\x02\x18" + varint(len(name)) + name.encode() + b"\x15" + varint(2 * children) + STOP


def column(name: str) -> bytes:
    """An optional text of the schema."""
    return b"\x15\x0c\x25\x02\x18" + varint(len(name)) + name.encode() + b"\x25\x00" + STOP


def nested(levels: int) -> list[bytes]:
    """A schema whose one column lies in so many records."""
    return [group("schema", 1), *[group("a", 1)] * levels, column("text")]


def wide(columns: int) -> list[bytes]:
    """A schema of so many columns."""
    return [group("schema", columns), *(column(f"c{number}") for number in range(columns))]


def parquet_file(schema: Sequence[bytes]) -> bytes:
    """A file with these elements of a schema."""
    footer = b"\x15\x02" + b"\x19\xfc" + varint(len(schema)) + b"".join(schema) + b"\x16\x00" + b"\x19\x0c" + STOP
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
