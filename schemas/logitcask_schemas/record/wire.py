"""The packed form in which an engine hands over one document's records: one uint8 buffer, little-endian.

Layout (every section starts at a multiple of 8 bytes; the gaps are zero):

    header          64 bytes, see `WIRE_HEADER`
    head_counts     u8  [P]
    head_ids        u16 or u32 [H]
    head_logprobs   f16 or f32 [H]
    tail_counts     u8  [P]
    tail_ids        as head_ids [N]
    tail_logprobs   as head_logprobs [N], present with flag bit 0
    the columns of `record.position_columns` that the capture spec stores, [P] or [P, W], in their order

Shape legend: P positions, H head entries, N tail draws, W values per position. Values in nats. A graphics processor
can write this layout with plain copies, and the receiver needs no copy at all.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.position_columns import stored_columns
from logitcask_schemas.record.records import Records

WIRE_MAGIC: Final = b"LCWIRE01"
WIRE_HEADER_BYTES: Final = 64
FLAG_TAIL_LOGPROBS: Final = 1
_ALIGNMENT: Final = 8
# magic, header bytes, id itemsize, value itemsize, flags, temperatures, reserved, P, H, N, reserved
WIRE_HEADER: Final = struct.Struct("<8sIIIIIIQQQQ")
_ID_DTYPES: Final[dict[int, np.dtype[Any]]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_VALUE_DTYPES: Final[dict[int, np.dtype[Any]]] = {2: np.dtype("<f2"), 4: np.dtype("<f4")}


def decode_wire(buffer: NDArray[np.uint8] | bytes | memoryview, spec: CaptureSpec) -> Records:
    """Unpack a wire buffer; every column is a view into it.

    Args:
        buffer: What an engine's capture made; its start must be 8-byte aligned for aligned columns.
        spec: What was captured.

    Returns:
        The records. Call `Records.check` before trusting ids and counts.

    Raises:
        InvalidRecordError: The buffer is no wire buffer, of another version, or not as long as its header says.
    """
    content = np.frombuffer(buffer, dtype=np.uint8)
    if len(content) < WIRE_HEADER_BYTES:
        raise InvalidRecordError(
            f"a wire buffer starts with {WIRE_HEADER_BYTES} header bytes, got {len(content)} in all"
        )
    header = content[:WIRE_HEADER_BYTES].tobytes()
    if header[:8] != WIRE_MAGIC:
        raise InvalidRecordError(f"a wire buffer starts with {WIRE_MAGIC!r}, this one with {header[:8]!r}")
    sections = list(wire_sections(header, spec))
    if len(content) != (expected := end_of_sections(sections)):
        raise InvalidRecordError(f"the wire header announces {expected} bytes, the buffer has {len(content)}")
    columns: dict[str, NDArray[Any]] = {
        name: content[start : start + count * dtype.itemsize].view(dtype) for name, dtype, start, count in sections
    }
    stored = stored_columns(spec)
    return Records(
        head_counts_P=columns["head_counts"],
        head_ids_H=columns["head_ids"],
        head_logprobs_H=columns["head_logprobs"],
        tail_counts_P=columns["tail_counts"],
        tail_ids_N=columns["tail_ids"],
        position_columns={column.name: _shaped(columns[column.name], column.width_of(spec)) for column in stored},
        tail_logprobs_N=columns.get("tail_logprobs"),
    )


def wire_sections(header: bytes, spec: CaptureSpec) -> Iterator[tuple[str, np.dtype[Any], int, int]]:
    """Name, dtype, first byte and number of values of each section that header and spec announce."""
    fields = WIRE_HEADER.unpack(header)
    _, header_bytes, id_bytes, value_bytes, flags, temperatures, reserved, positions, heads, draws, reserved_too = (
        fields
    )
    if header_bytes != WIRE_HEADER_BYTES or reserved or reserved_too or flags & ~FLAG_TAIL_LOGPROBS:
        raise InvalidRecordError(
            f"wire header of {header_bytes} bytes with flags {flags:#x} and reserved {reserved}, {reserved_too}; "
            f"this reader knows {WIRE_HEADER_BYTES} bytes, flag bit 0 and zeros: the engine is newer than it is"
        )
    if id_bytes not in _ID_DTYPES or value_bytes not in _VALUE_DTYPES:
        raise InvalidRecordError(
            f"wire header announces ids of {id_bytes} and values of {value_bytes} bytes; each must be 2 or 4"
        )
    ids, values = _ID_DTYPES[id_bytes], _VALUE_DTYPES[value_bytes]
    counts: np.dtype[Any] = np.dtype(np.uint8)
    listing: list[tuple[str, np.dtype[Any], int]] = [
        ("head_counts", counts, positions),
        ("head_ids", ids, heads),
        ("head_logprobs", values, heads),
        ("tail_counts", counts, positions),
        ("tail_ids", ids, draws),
    ]
    if flags & FLAG_TAIL_LOGPROBS:
        listing.append(("tail_logprobs", values, draws))
    if temperatures != len(spec.temperatures):
        raise InvalidRecordError(
            f"wire header announces {temperatures} temperatures, the capture spec has {len(spec.temperatures)}"
        )
    for column in stored_columns(spec):
        listing.append((column.name, column.dtype or values, positions * (column.width_of(spec) or 1)))
    start = WIRE_HEADER_BYTES
    for name, dtype, count in listing:
        yield name, dtype, start, count
        start += -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def end_of_sections(sections: list[tuple[str, np.dtype[Any], int, int]]) -> int:
    """Bytes of a buffer with these sections."""
    _, dtype, start, count = sections[-1]
    return start + -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def _shaped(values: NDArray[Any], width: int | None) -> NDArray[Any]:
    return values if width is None else values.reshape(-1, width)
