"""Shards as Zarr v3 groups in one ZIP archive: to keep, to ship, and to train from where space is dearer than time.

Inside: one array per column with all documents end to end, `document_id` and `checksum`, and one array of offsets per
level. Chunks are compressed and proved one by one, so a window costs the few chunks that it touches.
"""

import io
import json
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.arrow import REPAIR_ADVICE, SHARD_VERSION
from logitcask_schemas.cask.carriers.carrier import ByteSink
from logitcask_schemas.cask.carriers.zarr_chunks import (
    ChunkedArray,
    array_metadata,
    as_json,
    encode_chunks,
    group_metadata,
)
from logitcask_schemas.cask.format.answers import ANSWERS_NAME, Answers
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import LEVELS, RecordLayout
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


CHUNK_POSITIONS: Final = 4096
"""Positions whose values make one inner chunk. Far smaller ones make Zarr slow (twenty times at 64); far larger ones
make a random window decode what it does not want."""
CHUNK_DOCUMENTS: Final = 1024
_MAX_CHUNK: Final = 1 << 24
_OFFSETS_SUFFIX: Final = "_offsets"
_METADATA: Final = "zarr.json"
_ANSWER_LEVEL: Final = "answer"
_ANSWER_OFFSETS: Final = _ANSWER_LEVEL + _OFFSETS_SUFFIX


class ZarrCarrier:
    """The carrier for archives and object stores. See `Carrier` for the contract, docs/format.md for the bytes."""

    name: Final = "zarr"
    suffix: Final = ".zarr.zip"
    max_open: Final = 4096
    """Archives are mapped; decoded chunks lie in a cache of their own."""

    def write(self, columns: ShardColumns, layout: RecordLayout, identity: str, file: ByteSink) -> None:
        """See `Carrier.write`. Holds the compressed shard in memory on the way."""
        members = {_METADATA: as_json(group_metadata(identity, SHARD_VERSION[columns.answers is not None]))}
        positions = len(columns.arrays["head_counts"])
        for name, values, level in _arrays(columns, layout):
            chunk = CHUNK_DOCUMENTS if level in ("document", _ANSWER_LEVEL) else _chunk(len(values), positions)
            members[f"{name}/{_METADATA}"] = as_json(array_metadata(values.dtype, values.shape, chunk, level))
            if len(values):
                members[_shard_key(name, values.ndim)] = encode_chunks(values, chunk)
        file.write(pack(members))

    def open(self, path: Path, layout: RecordLayout, identity: str, content: memoryview | None = None) -> ShardColumns:
        """See `Carrier.open`. Maps the archive; reads offsets, ids and checksums of documents."""
        members = unpack(path, content)
        has_answers = _require_group(path, members, identity)
        expected = ["document_id", "checksum", *(level + _OFFSETS_SUFFIX for level in LEVELS)]
        expected += [column.name for column in layout.columns] + [_ANSWER_OFFSETS, ANSWERS_NAME] * has_answers
        found = {name.partition("/")[0] for name in members} - {_METADATA}
        if found != set(expected):
            raise CaskCorruptionError(
                f"{path}: columns are {sorted(found)}; the manifest asks for {sorted(expected)}. {REPAIR_ADVICE}."
            )
        offsets = {
            level: _array(path, members, level + _OFFSETS_SUFFIX, np.dtype("<i8"), None, "document")[:]
            for level in LEVELS
        }
        arrays = {
            column.name: _array(path, members, column.name, column.dtype, column.width, column.level)
            for column in layout.columns
        }
        ids = _array(path, members, "document_id", np.dtype(np.uint8), 32, "document")
        checksums = _array(path, members, "checksum", np.dtype("<u8"), None, "document")
        documents = len(ids)
        for level, cut in offsets.items():
            counts = {len(arrays[column.name]) for column in layout.columns if column.level == level}
            sound = len(cut) == documents + 1 and cut[0] == 0 and (cut[1:] >= cut[:-1]).all()
            if len(checksums) != documents or not sound or counts != {int(cut[-1])}:
                raise CaskCorruptionError(
                    f"{path}: offsets of level {level!r} do not cut columns of {sorted(counts)} values into "
                    f"{documents} documents. {REPAIR_ADVICE}."
                )
        answers = None
        if has_answers:
            cut = _array(path, members, _ANSWER_OFFSETS, np.dtype("<i8"), None, "document")[:]
            values = _array(path, members, ANSWERS_NAME, np.dtype("<u4"), None, _ANSWER_LEVEL)[:]
            answers = Answers.opened(path, cut, values, documents)
        return ShardColumns(
            document_ids=ids[:], checksums=checksums[:], offsets=offsets, arrays=arrays, answers=answers
        )


def _arrays(columns: ShardColumns, layout: RecordLayout) -> list[tuple[str, NDArray[Any], str]]:
    """Name, values and level of every stored array, in the order of the archive."""
    described: list[tuple[str, NDArray[Any], str]] = [
        ("document_id", columns.document_ids, "document"),
        ("checksum", columns.checksums, "document"),
    ]
    described += [(level + _OFFSETS_SUFFIX, columns.offsets[level], "document") for level in LEVELS]
    for column in layout.columns:
        array = columns.arrays[column.name]
        described.append((column.name, array[0 : len(array)], column.level))
    if columns.answers is not None:
        described.append((_ANSWER_OFFSETS, columns.answers.offsets, "document"))
        described.append((ANSWERS_NAME, columns.answers.values, _ANSWER_LEVEL))
    return described


def _chunk(values: int, positions: int) -> int:
    """Rows of an inner chunk: what `CHUNK_POSITIONS` have on average, rounded up to a power of two times that."""
    per_position = -(-values // max(positions, 1))
    return CHUNK_POSITIONS << max(per_position - 1, 0).bit_length()


def _shard_key(name: str, dimensions: int) -> str:
    return f"{name}/c" + "/0" * dimensions


def _require_group(path: Path, members: Mapping[str, memoryview], identity: str) -> bool:
    """Require the group to be a shard's of this identity; returns whether it has answers."""
    found = _read_json(path, members, _METADATA)
    attributes = found.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    kind, version = attributes.get("logitcask.format"), attributes.get("logitcask.version")
    if kind != "logitcask-shard" or version not in SHARD_VERSION.values():
        raise CaskCorruptionError(
            f"{path}: readable, but not a logitcask shard of version 1 or 2 (its attributes say {kind!r}, version "
            f"{version!r}). {REPAIR_ADVICE}."
        )
    if attributes.get("logitcask.identity") != identity:
        raise CaskCorruptionError(
            f"{path}: foreign shard: written for identity {attributes.get('logitcask.identity')!r}, this cask's is "
            f"{identity!r}. Move it back to the cask it came from."
        )
    if found != group_metadata(identity, str(version)):
        raise CaskCorruptionError(f"{path}: unexpected members in its {_METADATA}. {REPAIR_ADVICE}.")
    return version == SHARD_VERSION[True]


def _array(
    path: Path, members: Mapping[str, memoryview], name: str, dtype: np.dtype[Any], width: int | None, level: str
) -> ChunkedArray:
    """One array after requiring that its metadata is what this format prescribes for the column."""
    key = f"{name}/{_METADATA}"
    found = _read_json(path, members, key)
    try:
        length = found["shape"][0]
        chunk = found["codecs"][0]["configuration"]["chunk_shape"][0]
    except (KeyError, IndexError, TypeError) as error:
        raise CaskCorruptionError(f"{path}: {key} lacks shape or sharding codec. {REPAIR_ADVICE}.") from error
    sizes_sound = isinstance(length, int) and isinstance(chunk, int) and length >= 0 and 0 < chunk <= _MAX_CHUNK
    shape = (length,) if width is None else (length, width)
    if not sizes_sound or found != array_metadata(dtype, shape, chunk, level):
        raise CaskCorruptionError(
            f"{path}: {key} does not describe the column that the manifest asks for: {dtype.name}, level {level!r}, "
            f"{width or 1} values each, as columns of this format are stored. {REPAIR_ADVICE}."
        )
    data = members.get(_shard_key(name, len(shape)))
    if length and data is None:
        raise CaskCorruptionError(f"{path}: array {name} of {length} rows lost its chunks. {REPAIR_ADVICE}.")
    return ChunkedArray(memoryview(b"") if data is None else data, dtype, shape, chunk, f"{path}: array {name}")


def _read_json(path: Path, members: Mapping[str, memoryview], name: str) -> dict[str, Any]:
    try:
        document = json.loads(bytes(members[name]))
    except KeyError as error:
        raise CaskCorruptionError(f"{path}: lacks {name}: its columns are not a shard's. {REPAIR_ADVICE}.") from error
    except (ValueError, RecursionError) as error:
        raise CaskCorruptionError(f"{path}: {name} is not JSON ({error}). {REPAIR_ADVICE}.") from error
    if not isinstance(document, dict):
        raise CaskCorruptionError(f"{path}: {name} is not a JSON object. {REPAIR_ADVICE}.")
    return document
