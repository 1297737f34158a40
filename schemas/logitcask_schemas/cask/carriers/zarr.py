"""Shards as Zarr v3 groups in one ZIP archive: to keep, to ship, and to read with any Zarr library.

Inside: one array per column with all documents end to end, `document_id` and `checksum`, and one array of offsets per
level. zarr-python encodes and decodes them; the archive is the standard library's. A shard is decoded as a whole when
it is opened, as a Parquet file is.
"""

import asyncio
import errno
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.arrow import REPAIR_ADVICE, SHARD_VERSIONS, shard_version
from logitcask_schemas.cask.carriers.carrier import ByteSink
from logitcask_schemas.cask.format.columns import ShardColumns
from logitcask_schemas.cask.format.layout import LEVELS, RecordLayout
from logitcask_schemas.cask.format.lists import LISTS, ShardLists
from logitcask_schemas.errors import CaskCorruptionError

T = TypeVar("T")

ZSTD_LEVEL: Final = 3
CHUNK_POSITIONS: Final = 4096
"""Positions whose values make one inner chunk. Far smaller ones make Zarr slow (twenty times at 64); far larger ones
make a user's window decode what it does not ask for."""
CHUNK_DOCUMENTS: Final = 1024
_INDEX_SLOT_BYTES: Final = 16
"""Per inner chunk: offset and size, u64 each."""
_MAX_MEMBERS: Final = 1024
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time a ZIP can name: archives shall not depend on when they were made."""
_UNIX: Final = 3
_METADATA: Final = "zarr.json"
_OFFSETS_SUFFIX: Final = "_offsets"
_LIST_LEVELS: Final = {"answers": "answer", "recorded": "recorded", "context": "context"}
"""Of each column of lists."""
_UNDECODABLE: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What zarr-python and its codecs raise about metadata and chunks that are not what a writer made."""


class ZarrCarrier:
    """The carrier for archives and exchange. See `Carrier` for the contract, docs/format.md for the bytes."""

    name: Final = "zarr"
    suffix: Final = ".zarr.zip"
    max_open: Final = 4
    """An open shard lies decoded in memory."""

    def write(self, columns: ShardColumns, layout: RecordLayout, identity: str, file: ByteSink) -> None:
        """Write a whole shard as a ZIP archive; the compressed shard lies in memory on the way."""
        file.write(pack(_finished(_encoded(columns, layout, identity))))

    def open(self, path: Path, layout: RecordLayout, identity: str, content: memoryview | None = None) -> ShardColumns:
        """A shard in memory; the whole archive is read and decoded."""
        members = unpack(path, content)
        with _damage_explained(path):
            return _finished(_decoded(path, members, layout, identity, around_damage=False))

    def open_around_damage(self, path: Path, layout: RecordLayout, identity: str, content: memoryview) -> ShardColumns:
        """As `open`, for files that are damaged: the values of chunks that cannot be decoded are zeros.

        Which documents are whole is for their checksums to say.
        """
        members = unpack(path, content, around_damage=True)
        with _damage_explained(path):
            return _finished(_decoded(path, members, layout, identity, around_damage=True))


def pack(members: Mapping[str, bytes]) -> memoryview:
    """The archive with these members, in this order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, _EPOCH)
            member.create_system = _UNIX
            member.external_attr = 0o100644 << 16
            archive.writestr(member, content)
    return buffer.getbuffer()


def unpack(path: Path, content: memoryview | None = None, *, around_damage: bool = False) -> dict[str, bytes]:
    """The members of an archive.

    Args:
        path: Its file.
        content: The whole file, where it was read before.
        around_damage: Whether to return members that do not match their CRC-32.

    Raises:
        CaskCorruptionError: No ZIP archive, or not one that `pack` makes.
        OSError: From the file system, unchanged.
    """
    with path.open("rb") if content is None else io.BytesIO(content) as file:
        try:
            return _members(path, file, around_damage=around_damage)
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, *_UNDECODABLE) as error:
            # zipfile lets seeks to nowhere, wrong UTF-8 and encryption through as what they are to it.
            raise CaskCorruptionError(f"{path}: not a readable ZIP archive ({error})") from error


def _members(path: Path, file: IO[bytes], *, around_damage: bool) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        listing = archive.infolist()
        if len(listing) > _MAX_MEMBERS:
            raise CaskCorruptionError(f"{path}: {len(listing)} members, a shard has at most {_MAX_MEMBERS}")
        for member in listing:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise CaskCorruptionError(f"{path}: member {member.filename!r} is compressed, expected it stored")
            if around_damage:
                del member.CRC  # without one, zipfile does not compare it
        return {member.filename: archive.read(member) for member in listing}


def _finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of asynchronous work.

    In a thread and an event loop that end with it. zarr-python's own loop would live on in this process, and a child
    that is forked beside a thread may hang; and the caller's thread may have a running loop, as in a notebook.

    Raises:
        OSError: There is no memory, or no thread, for it; which says nothing about a shard.
    """
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="zarr") as thread:
            return thread.submit(asyncio.run, work).result()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or _is_refusal(error):
            raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)}, or no thread to start") from error
        raise
    finally:
        work.close()  # where it was never begun


def _is_refusal(error: Exception) -> bool:
    """Whether an error that zarr-python passed on is the operating system's, by Python's words for it."""
    return "can't start new thread" in str(error)


async def _encoded(columns: ShardColumns, layout: RecordLayout, identity: str) -> dict[str, bytes]:
    """The members of a shard's archive, in their order."""
    # Here and below: importing zarr takes half a second, which `logitcask --help` and Arrow casks need not pay.
    from zarr.api.asynchronous import create_group
    from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    members: dict[str, Any] = {}
    attributes = {
        "logitcask.format": "logitcask-shard",
        "logitcask.version": shard_version(columns.lists.names),
        "logitcask.identity": identity,
    }
    group = await create_group(store=MemoryStore(members), zarr_format=3, attributes=attributes)
    positions = len(columns.arrays["head_counts"])
    for name, values, level in _arrays(columns, layout):
        rows = _chunk_rows(level, len(values), positions)
        array = await group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(rows, *values.shape[1:]),
            shards=(rows * max(1, -(-len(values) // rows)), *values.shape[1:]),
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=(ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()),
            fill_value=0,
            dimension_names=[level, *[None] * (values.ndim - 1)],
            # A chunk of zeros is stored as any other, or a lost one would look like it.
            config={"write_empty_chunks": True},
        )
        if len(values):
            await array.setitem(slice(None), values)
    return {name: buffer.to_bytes() for name, buffer in members.items()}


async def _decoded(
    path: Path, members: Mapping[str, bytes], layout: RecordLayout, identity: str, *, around_damage: bool
) -> ShardColumns:
    from zarr.api.asynchronous import open_group
    from zarr.buffer.cpu import Buffer
    from zarr.storage import MemoryStore

    store = MemoryStore({name: Buffer.from_bytes(content) for name, content in members.items()}, read_only=True)
    group = await open_group(store=store, mode="r", zarr_format=3, use_consolidated=False)
    names = {name.partition("/")[0] for name in members} - {_METADATA}
    lists = tuple(kind.name for kind in LISTS if kind.name in names)
    _require_group(path, group.attrs, identity, lists)
    described = _described(layout, lists)
    if names != described.keys():
        raise CaskCorruptionError(
            f"{path}: columns are {sorted(names)}; the manifest asks for {sorted(described)}. {REPAIR_ADVICE}."
        )
    opened: dict[str, Any] = {name: await group.getitem(name) for name in described}
    positions = opened["head_counts"].shape[0]
    values: dict[str, NDArray[Any]] = {}
    for name, (dtype, width, level) in described.items():
        _require_array(path, members, opened[name], name, dtype, width, level, positions)
        values[name] = await (_whole_around_damage if around_damage else _whole)(opened[name])
    offsets = {level: values[level + _OFFSETS_SUFFIX] for level in LEVELS}
    arrays = {column.name: values[column.name] for column in layout.columns}
    documents = len(values["document_id"])
    for level, cut in offsets.items():
        counts = {len(arrays[column.name]) for column in layout.columns if column.level == level}
        sound = len(cut) == documents + 1 and cut[0] == 0 and (cut[1:] >= cut[:-1]).all()
        if len(values["checksum"]) != documents or not sound or counts != {int(cut[-1])}:
            raise CaskCorruptionError(
                f"{path}: offsets of level {level!r} do not cut columns of {sorted(counts)} values into "
                f"{documents} documents. {REPAIR_ADVICE}."
            )
    opened_lists = [
        kind.opened(path, values[_offsets_name(kind.name)], values[kind.name], documents)
        for kind in LISTS
        if kind.name in lists
    ]
    return ShardColumns(
        document_ids=values["document_id"],
        checksums=values["checksum"],
        offsets=offsets,
        arrays=arrays,
        lists=ShardLists.of(opened_lists),
    )


async def _whole(array: Any) -> NDArray[Any]:
    whole: NDArray[Any] = await array.getitem(slice(None))
    return whole


async def _whole_around_damage(array: Any) -> NDArray[Any]:
    """The values chunk by chunk; those of chunks that cannot be decoded are zeros."""
    whole: NDArray[Any] = np.zeros(array.shape, dtype=array.dtype)
    for start in range(0, len(whole), array.chunks[0]):
        rows = slice(start, start + array.chunks[0])
        try:
            whole[rows] = await array.getitem(rows)
        except _UNDECODABLE as error:
            if _is_refusal(error):
                raise
    return whole


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except CaskCorruptionError:
        raise
    except _UNDECODABLE as error:
        raise CaskCorruptionError(f"{path}: not a readable Zarr group ({error}). {REPAIR_ADVICE}.") from error


def _described(layout: RecordLayout, lists: Sequence[str]) -> dict[str, tuple[np.dtype[Any], int | None, str]]:
    """Per array of a shard, in the order of the archive: dtype, values per row where that is an axis, and level."""
    arrays: dict[str, tuple[np.dtype[Any], int | None, str]] = {
        "document_id": (np.dtype(np.uint8), 32, "document"),
        "checksum": (np.dtype("<u8"), None, "document"),
    }
    arrays |= {level + _OFFSETS_SUFFIX: (np.dtype("<i8"), None, "document") for level in LEVELS}
    arrays |= {column.name: (column.dtype, column.width, column.level) for column in layout.columns}
    for name in lists:
        arrays[_offsets_name(name)] = np.dtype("<i8"), None, "document"
        arrays[name] = np.dtype("<u4"), None, _LIST_LEVELS[name]
    return arrays


def _arrays(columns: ShardColumns, layout: RecordLayout) -> Iterator[tuple[str, NDArray[Any], str]]:
    """Name, values and level of every stored array, in the order of the archive."""
    values: dict[str, Any] = {"document_id": columns.document_ids, "checksum": columns.checksums, **columns.arrays}
    values |= {level + _OFFSETS_SUFFIX: columns.offsets[level] for level in LEVELS}
    for lists in columns.lists:
        values |= {_offsets_name(lists.name): lists.offsets, lists.name: lists.values}
    for name, (_, _, level) in _described(layout, columns.lists.names).items():
        yield name, values[name][0 : len(values[name])], level


def _offsets_name(lists: str) -> str:
    return _LIST_LEVELS[lists] + _OFFSETS_SUFFIX


def _chunk_rows(level: str, values: int, positions: int) -> int:
    """Rows of an inner chunk: what `CHUNK_POSITIONS` have on average, rounded up to a power of two times that."""
    if level == "document" or level in _LIST_LEVELS.values():
        return CHUNK_DOCUMENTS
    per_position = -(-values // max(positions, 1))
    return CHUNK_POSITIONS << max(per_position - 1, 0).bit_length()


def _require_group(path: Path, attributes: Mapping[str, Any], identity: str, lists: Sequence[str]) -> None:
    """Require the group to be a shard's of this identity, of the version that its columns of lists have."""
    kind, version = attributes.get("logitcask.format"), attributes.get("logitcask.version")
    if kind != "logitcask-shard" or version not in SHARD_VERSIONS:
        raise CaskCorruptionError(
            f"{path}: readable, but not a logitcask shard of version 1 to 3 (its attributes say {kind!r}, version "
            f"{version!r}). {REPAIR_ADVICE}."
        )
    if version != shard_version(lists):
        raise CaskCorruptionError(
            f"{path}: a shard of version {version} does not have the lists {', '.join(lists) or '(none)'}. "
            f"{REPAIR_ADVICE}."
        )
    if attributes.get("logitcask.identity") != identity:
        raise CaskCorruptionError(
            f"{path}: foreign shard: written for identity {attributes.get('logitcask.identity')!r}, this cask's is "
            f"{identity!r}. Move it back to the cask it came from."
        )


def _require_array(
    path: Path,
    members: Mapping[str, bytes],
    array: Any,
    name: str,
    dtype: np.dtype[Any],
    width: int | None,
    level: str,
    positions: int,
) -> None:
    """Require an array to be what this format prescribes for the column, before anything of that size is decoded.

    zarr-python before 3.3 reads a missing chunk file as zeros, so that it is there is required here. A chunk that is
    missing inside the file does not escape the documents' checksums.
    """
    rows = array.shape[0] if array.shape else 0
    shape = (rows,) if width is None else (rows, width)
    chunk = _chunk_rows(level, rows, positions)
    if (array.shape, array.dtype, array.chunks) != (shape, dtype, (chunk, *shape[1:])):
        raise CaskCorruptionError(
            f"{path}: {name}/{_METADATA} does not describe the column that the manifest asks for: {dtype.name}, level "
            f"{level!r}, {width or 1} values each, as columns of this format are stored. {REPAIR_ADVICE}."
        )
    stored = members.get(f"{name}/c" + "/0" * len(shape), b"")
    if rows and len(stored) < -(-rows // chunk) * _INDEX_SLOT_BYTES:
        raise CaskCorruptionError(f"{path}: array {name} of {rows} rows lost its chunks. {REPAIR_ADVICE}.")
