"""Files that are no JSON lines, known by their first bytes: one sentence for the file instead of one for each line."""

from dataclasses import dataclass
from typing import Literal

from logitcask_schemas.errors import LogitcaskError

SNIFFED_BYTES = 512
"""Bytes of a file's beginning that decide."""
_TAR_AT = 257
_ICONV = "iconv -f {} -t UTF-8"


Packing = Literal["gzip", "zstd", "parquet"]
"""What an upload may be packed as; a corpus on the disk is lines."""


class NotJsonLinesError(LogitcaskError, ValueError):
    """A corpus is a file of another format as a whole."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is instead of JSON lines."""

    what: str
    """Behind a name: "is compressed with gzip"."""
    command: str | None
    """Prints the lines inside when it is given the file; None where no command does."""
    packing: Packing | None = None
    """Set where the service itself makes lines of an upload."""


_MAGICS: tuple[tuple[bytes, FileKind], ...] = (
    (b"\x1f\x8b", FileKind("is compressed with gzip", "gzip -dc", "gzip")),
    (b"\x28\xb5\x2f\xfd", FileKind("is compressed with zstd", "zstd -dc", "zstd")),
    (b"\xfd7zXZ\x00", FileKind("is compressed with xz", "xz -dc")),
    (b"BZh", FileKind("is compressed with bzip2", "bzip2 -dc")),
    (b"\x04\x22\x4d\x18", FileKind("is compressed with lz4", "lz4 -dc")),
    (b"\x1f\x9d", FileKind("is compressed with compress", "gzip -dc")),
    (b"\xff\x06\x00\x00sNaPpY", FileKind("is compressed with snappy", None)),
    (b"PK\x03\x04", FileKind("is a ZIP archive", "unzip -p")),
    (b"7z\xbc\xaf\x27\x1c", FileKind("is a 7z archive", "7z x -so")),
    (b"PAR1", FileKind("is a Parquet file", None, "parquet")),
    (b"PARE", FileKind("is an encrypted Parquet file", None, "parquet")),
    (b"ARROW1", FileKind("is an Arrow file", None)),
    (b"FEA1", FileKind("is a Feather file", None)),
    (b"ORC", FileKind("is an ORC file", None)),
    (b"Obj\x01", FileKind("is an Avro file", None)),
    (b"SQLite format 3\x00", FileKind("is an SQLite database", None)),
    (b"\x89HDF\r\n\x1a\n", FileKind("is an HDF5 file", None)),
    (b"\x93NUMPY", FileKind("is a NumPy file", None)),
    (b"%PDF-", FileKind("is a PDF", None)),
    # UTF-32 before UTF-16, whose mark begins its little-endian one.
    (b"\xff\xfe\x00\x00", FileKind("is UTF-32", _ICONV.format("UTF-32"))),
    (b"\x00\x00\xfe\xff", FileKind("is UTF-32", _ICONV.format("UTF-32"))),
    (b"\xff\xfe", FileKind("is UTF-16", _ICONV.format("UTF-16"))),
    (b"\xfe\xff", FileKind("is UTF-16", _ICONV.format("UTF-16"))),
)
_ARROW_STREAM = b"\xff\xff\xff\xff"
"""Of `datasets`, for one; the length of the schema follows, at most a few megabytes."""
_UNMARKED = {
    (False, True, True, True): ("is UTF-32", "UTF-32LE"),
    (True, True, True, False): ("is UTF-32", "UTF-32BE"),
    (False, True, False, True): ("is UTF-16", "UTF-16LE"),
    (True, False, True, False): ("is UTF-16", "UTF-16BE"),
}
"""Which of the first four bytes are zero in text without a mark that begins with ASCII, as JSON does."""


def kind_of(head: bytes) -> FileKind | None:
    """What a file with this beginning is, or None where it may be JSON lines in UTF-8."""
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if head.startswith(_ARROW_STREAM) and head[7:8] == b"\x00":
        return FileKind("is an Arrow stream", None)
    if head[_TAR_AT : _TAR_AT + 5] == b"ustar":
        return FileKind("is a tar archive", "tar -xOf")
    unmarked = _UNMARKED.get(tuple(byte == 0 for byte in head[:4]))  # type: ignore[arg-type]  # shorter heads miss
    return FileKind(unmarked[0], _ICONV.format(unmarked[1])) if unmarked else None


def packing_of(head: bytes) -> Packing | None:
    """How an upload that begins so is packed; None where it is lines. Raises NotJsonLinesError on other formats."""
    kind = kind_of(head)
    if kind is not None and kind.packing is not None:
        return kind.packing
    require_lines(head)
    return None


def require_lines(head: bytes) -> None:
    """Raise NotJsonLinesError where the file with this beginning is of another format."""
    if (kind := kind_of(head)) is not None:
        way = f"`{kind.command} FILE` makes them of it" if kind.command else "write its rows as JSON lines"
        raise NotJsonLinesError(f"the corpus {kind.what}, expected JSON lines in UTF-8; {way}")
