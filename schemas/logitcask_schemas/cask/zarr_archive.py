"""The ZIP archive around a Zarr hierarchy: written the same way every time, read without copies from a mapping.

Members are stored, not compressed: their chunks already are. ZIP proves each member with a CRC-32 of its own, but reads
whole members; here a member is a view of the mapped file and its chunks are proved by the codecs inside.
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from logitcask_schemas.errors import CaskCorruptionError

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time a ZIP can name: archives shall not depend on when they were made."""
_UNIX: Final = 3
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
_MAX_MEMBERS: Final = 1024


def pack(members: Mapping[str, bytes]) -> memoryview:
    """The archive with these members, in this order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = 0o100644 << 16
            archive.writestr(info, content)
    return buffer.getbuffer()


def unpack(path: Path, content: memoryview | None = None) -> dict[str, memoryview]:
    """The members of an archive as views of its content, or else of the mapped file, which then stays mapped.

    Raises:
        CaskCorruptionError: No ZIP archive, or not one that `pack` makes.
        OSError: From the file system, unchanged.
    """
    try:
        if content is not None:
            whole = content
            listing = _listing(io.BytesIO(content))
        else:
            with path.open("rb") as file:
                whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                listing = _listing(file)
    except (zipfile.BadZipFile, struct.error, NotImplementedError, OverflowError, ValueError) as error:
        # ValueError: an empty file cannot be mapped, and zipfile lets a seek to nowhere and wrong UTF-8 through.
        raise CaskCorruptionError(f"{path}: not a readable ZIP archive ({error})") from error
    if len(listing) > _MAX_MEMBERS:
        raise CaskCorruptionError(f"{path}: {len(listing)} members, a shard has at most {_MAX_MEMBERS}")
    return {info.filename: _member(path, whole, info) for info in listing}


def _listing(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(file) as archive:
        return archive.infolist()


def _member(path: Path, mapped: memoryview, info: zipfile.ZipInfo) -> memoryview:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise CaskCorruptionError(f"{path}: member {info.filename!r} is compressed or encrypted, expected it stored")
    start = info.header_offset
    if not 0 <= start <= len(mapped) - _LOCAL_HEADER.size:
        raise CaskCorruptionError(f"{path}: member {info.filename!r} starts at byte {start} of {len(mapped)}")
    magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(mapped, start)
    start += _LOCAL_HEADER.size + name_bytes + extra_bytes
    if magic != b"PK\3\4" or start + info.file_size > len(mapped):
        raise CaskCorruptionError(f"{path}: no member of {info.file_size} bytes where {info.filename!r} should be")
    return mapped[start : start + info.file_size]
