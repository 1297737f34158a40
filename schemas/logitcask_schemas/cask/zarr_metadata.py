"""The zarr.json documents of a shard: a Zarr v3 group with one sharded array per column.

Codecs of an inner chunk: little-endian bytes, zstd, CRC-32C. The array's one shard file ends in its index, which has
a CRC-32C too.
"""

import json
from typing import Any, Final

import numpy as np

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
