"""A column as one Zarr shard file (spec `sharding_indexed`, index at the end): encoding, and decoding on access.

Why not zarr-python: it reads a missing chunk as zeros (before 3.3), takes some milliseconds per access, and brings an
event loop that forked workers must not inherit. What is written here it reads; the tests make it.

Decoded chunks are kept in one least-recently-used cache per process.
"""

import json
import struct
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count
from typing import Any, Final

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.errors import CaskCorruptionError

ZSTD_LEVEL: Final = 3
_CRC32C: Final[dict[str, Any]] = {"name": "crc32c"}
_BYTES: Final[dict[str, Any]] = {"name": "bytes", "configuration": {"endian": "little"}}
_ZSTD: Final[dict[str, Any]] = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}


def group_metadata(identity: str, version: str) -> dict[str, Any]:
    """zarr.json of the shard's root group."""
    attributes = {"logitcask.format": "logitcask-shard", "logitcask.version": version, "logitcask.identity": identity}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_metadata(dtype: np.dtype[Any], shape: tuple[int, ...], chunk: int, level: str) -> dict[str, Any]:
    """zarr.json of one array.

    Args:
        dtype: Of the values.
        shape: One or two dimensions; the first is cut into chunks.
        chunk: Rows of an inner chunk.
        level: What the rows are, the name of the first dimension.
    """
    inner = [chunk, *shape[1:]]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [chunk * max(1, -(-shape[0] // chunk)), *shape[1:]]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.kind == "f" else 0,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": inner,
                    "codecs": [_BYTES, _ZSTD, _CRC32C],
                    "index_codecs": [_BYTES, _CRC32C],
                    "index_location": "end",
                },
            }
        ],
        "dimension_names": [level, *[None] * (len(shape) - 1)],
        "attributes": {},
    }


def as_json(document: dict[str, Any]) -> bytes:
    """The document as it is stored."""
    return json.dumps(document, indent=1).encode()


CACHE_BYTES: Final = 1 << 27
"""Decoded chunks kept per process."""
_CRC: Final = struct.Struct("<I")
_SLOT_BYTES: Final = 16
"""Per inner chunk in the index: offset and size, u64 each."""
_MISSING: Final = 2**64 - 1


def encode_chunks(values: NDArray[Any], chunk: int) -> bytes:
    """The shard file of an array of at least one row.

    Args:
        values: [N] or [N, width], little-endian.
        chunk: Rows of an inner chunk; the last one is filled up with zeros.
    """
    codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
    pieces: list[bytes] = []
    slots = np.empty((-(-len(values) // chunk), 2), dtype="<u8")
    at = 0
    for number in range(len(slots)):
        part = values[number * chunk : (number + 1) * chunk]
        if len(part) < chunk:
            part = np.concatenate([part, np.zeros((chunk - len(part), *part.shape[1:]), part.dtype)])
        packed: bytes = codec.compress(np.ascontiguousarray(part).data, asbytes=True)
        pieces += [packed, _crc32c(packed)]
        slots[number] = at, len(packed) + _CRC.size
        at += len(packed) + _CRC.size
    index = slots.tobytes()
    return b"".join([*pieces, index, _crc32c(index)])


class ChunkedArray:
    """A `ColumnArray` over a mapped shard file; a window inside one chunk is a view of the decoded chunk."""

    def __init__(self, data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], chunk: int, where: str) -> None:
        """Read and prove the index.

        Args:
            data: The shard file; empty where the array is.
            dtype: Of the values.
            shape: Of the whole array.
            chunk: Rows of an inner chunk.
            where: The array, for errors.

        Raises:
            CaskCorruptionError: The index is damaged, or a chunk is missing.
        """
        self.dtype = dtype
        self.shape = shape
        self._data, self._chunk, self._where = data, chunk, where
        self._token = next(_TOKENS)
        chunks = -(-shape[0] // chunk)
        index_bytes = chunks * _SLOT_BYTES
        if chunks and len(data) < index_bytes + _CRC.size:
            raise CaskCorruptionError(f"{where}: {len(data)} bytes cannot hold the index of {chunks} chunks")
        self._body = len(data) - index_bytes - _CRC.size
        index = data[self._body : self._body + index_bytes] if chunks else data[:0]
        if chunks and _crc32c(index) != data[-_CRC.size :]:
            raise CaskCorruptionError(f"{where}: the index of its chunks does not match its CRC-32C")
        self._slots = np.frombuffer(index, dtype="<u8").reshape(chunks, 2)
        if (self._slots == _MISSING).any():
            missing = int(np.flatnonzero((self._slots == _MISSING).any(axis=1))[0])
            raise CaskCorruptionError(f"{where}: chunk {missing} of {chunks} is missing")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, window: slice, /) -> NDArray[Any]:
        start, stop, step = window.indices(len(self))
        if step != 1:
            raise IndexError(f"{self._where}: windows go by single steps, got {window}")
        if stop <= start:
            return np.empty((0, *self.shape[1:]), self.dtype)
        parts = list(self._parts(start, stop, keep=stop - start < len(self)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _parts(self, start: int, stop: int, *, keep: bool) -> Iterator[NDArray[Any]]:
        for number in range(start // self._chunk, -(-stop // self._chunk)):
            first = number * self._chunk
            yield self._decoded(number, keep=keep)[max(start - first, 0) : stop - first]

    def _decoded(self, number: int, *, keep: bool) -> NDArray[Any]:
        """A chunk; whoever takes the whole array has it then, and need not push other chunks out of the cache."""
        key = (self._token, number)
        if (known := _CACHE.get(key)) is not None:
            return known
        offset, size = (int(value) for value in self._slots[number])
        where = f"{self._where}: chunk {number}"
        if size <= _CRC.size or offset + size > self._body:
            raise CaskCorruptionError(f"{where} should be bytes {offset} to {offset + size} of {self._body}")
        packed, crc = self._data[offset : offset + size - _CRC.size], self._data[offset + size - _CRC.size :][:4]
        if _crc32c(packed) != crc:
            raise CaskCorruptionError(f"{where} does not match its CRC-32C")
        shape = (self._chunk, *self.shape[1:])
        wanted = int(np.prod(shape)) * self.dtype.itemsize
        try:
            raw = pa.Codec("zstd").decompress(packed, decompressed_size=wanted)
        except (pa.ArrowException, OSError) as error:
            raise CaskCorruptionError(f"{where} cannot be decompressed to {wanted} bytes: {error}") from error
        values: NDArray[Any] = np.frombuffer(raw, dtype=self.dtype).reshape(shape)
        if keep:
            _CACHE.put(key, values)
        return values


class _ChunkCache:
    """Least recently used arrays up to a number of bytes. No lock: a lock held at a fork would hang the child."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[int, int]) -> NDArray[Any] | None:
        # Taken out and put back: two threads at worst decode a chunk twice.
        if (chunk := self._chunks.pop(key, None)) is not None:
            self._chunks[key] = chunk
        return chunk

    def put(self, key: tuple[int, int], chunk: NDArray[Any]) -> None:
        if (replaced := self._chunks.pop(key, None)) is not None:
            self._bytes -= replaced.nbytes
        self._chunks[key] = chunk
        self._bytes += chunk.nbytes
        while self._bytes > self._max_bytes and len(self._chunks) > 1:
            self._bytes -= self._chunks.popitem(last=False)[1].nbytes


_TOKENS: Final = count()
"""Tells the arrays of a process apart in the cache."""
_CACHE: Final = _ChunkCache(CACHE_BYTES)


def _crc32c(data: bytes | memoryview) -> bytes:
    # The module takes bytes and nothing else; a chunk's copy costs a fraction of its decompression.
    checksum: int = google_crc32c.value(bytes(data))
    return _CRC.pack(checksum)
