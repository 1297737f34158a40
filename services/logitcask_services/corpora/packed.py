"""Uploads that are gzip, zstd or Parquet become lines, a block at a time; one that unpacks without end is stopped.

gzip is RFC 1952 (several members in a row are one content), zstd RFC 8878 (windows up to 128 MiB, as its tools take).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from logitcask_schemas.cask.storage import files
from logitcask_schemas.errors import LogitcaskError
from logitcask_services.corpora.file_kind import Packing
from logitcask_services.corpora.parquet_lines import ParquetError, lines_of_parquet

BLOCK_BYTES = 1 << 20
FREE_BYTES = 64 << 20
"""So much any file may unpack to, whatever its ratio: what compresses well enough is short."""


class PackedError(LogitcaskError, ValueError):
    """An upload that is packed cannot become a corpus; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """What a packed upload may become."""

    max_bytes: int = 64 << 30
    max_ratio: float = 250.0
    """Unpacked bytes for each that was sent, beyond the first FREE_BYTES."""
    floor_bytes: int = 0
    """Free bytes of the disk that are left alone."""

    def require(self, packed: int, unpacked: int, folder: Path) -> None:
        """Raise PackedError where so many bytes may not become so many; OSError (ENOSPC) where the disk is too full."""
        if unpacked > self.max_bytes:
            raise PackedError(
                "unpacks_too_large",
                f"the corpus unpacks to more than {self.max_bytes} bytes, the most this service takes; split it",
            )
        if unpacked > FREE_BYTES and unpacked > packed * self.max_ratio:
            raise PackedError(
                "unpacks_too_large",
                f"{packed} bytes unpack to more than {unpacked - BLOCK_BYTES}: a ratio above {self.max_ratio:g}, "
                "which no text has. If it is right, send it uncompressed, or let the operator raise max_unpack_ratio",
            )
        if files.free_bytes(folder) < self.floor_bytes:
            raise files.disk_full(folder)


def unpack(path: Path, packing: Packing) -> Iterator[bytes]:
    """The lines in a packed file, in blocks. Memory is a block and a window, or a page of each column.

    Raises:
        PackedError: The file is damaged, or has no column that a corpus is made of.
        NotJsonLinesError: There is another format inside.
    """
    if packing == "parquet":
        try:
            yield from lines_of_parquet(path)
        except ParquetError as error:
            raise PackedError("bad_parquet", str(error)) from error
        return
    with pa.OSFile(str(path)) as file, _told(packing), pa.CompressedInputStream(file, packing) as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


@contextmanager
def _told(packing: Packing) -> Iterator[None]:
    """Raise PackedError for what the library says of damaged files; faults of the disk have a number and go through."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise PackedError("damaged_archive", f"the corpus is damaged {packing}: {error}; send it again") from error
