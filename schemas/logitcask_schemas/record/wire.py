"""The packed form in which an engine hands over one document's records: one uint8 buffer, little-endian.

Layout (every section starts at a multiple of 8 bytes; the gaps are zero):

    header          64 bytes, see `_HEADER`
    head_counts     u8  [P]
    head_ids        u16 or u32 [H]
    head_logprobs   f16 or f32 [H]
    tail_counts     u8  [P]
    tail_ids        as head_ids [N]
    tail_logprobs   as head_logprobs [N], present with flag bit 0
    log_tail_mass   [P]
    entropy         [P]
    log_z           [P, T], present where T > 0

Shape legend: P positions, H head entries, N tail draws, T stored temperatures. Values in nats. A graphics processor
can write this layout with plain copies, and the receiver needs no copy at all.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.records import Records

WIRE_MAGIC: Final = b"LCWIRE01"
WIRE_HEADER_BYTES: Final = 64
FLAG_TAIL_LOGPROBS: Final = 1
_ALIGNMENT: Final = 8
# magic, header bytes, id itemsize, value itemsize, flags, temperatures, reserved, P, H, N, reserved
_HEADER: Final = struct.Struct("<8sIIIIIIQQQQ")
_ID_DTYPES: Final[dict[int, np.dtype[Any]]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_VALUE_DTYPES: Final[dict[int, np.dtype[Any]]] = {2: np.dtype("<f2"), 4: np.dtype("<f4")}


def encode_wire(records: Records) -> NDArray[np.uint8]:
    """Pack records into one buffer.

    Args:
        records: ids uint16 or uint32, values float16 or float32, each the same dtype in all columns.

    Returns:
        uint8 buffer of the layout above.

    Raises:
        InvalidRecordError: A column has another dtype than the wire can carry.
    """
    ids, values = records.head_ids_H.dtype, records.head_logprobs_H.dtype
    if ids.itemsize not in _ID_DTYPES or ids.kind != "u" or values.itemsize not in _VALUE_DTYPES or values.kind != "f":
        raise InvalidRecordError(
            f"the wire carries ids as uint16 or uint32 and values as float16 or float32, got {ids} and {values}"
        )
    temperatures = 0 if records.log_z_PT is None else records.log_z_PT.shape[1]
    header = _HEADER.pack(
        WIRE_MAGIC,
        WIRE_HEADER_BYTES,
        ids.itemsize,
        values.itemsize,
        0 if records.tail_logprobs_N is None else FLAG_TAIL_LOGPROBS,
        temperatures,
        0,
        records.num_positions,
        len(records.head_ids_H),
        len(records.tail_ids_N),
        0,
    )
    columns = {
        "head_counts": records.head_counts_P,
        "head_ids": records.head_ids_H,
        "head_logprobs": records.head_logprobs_H,
        "tail_counts": records.tail_counts_P,
        "tail_ids": records.tail_ids_N,
        "tail_logprobs": records.tail_logprobs_N,
        "log_tail_mass": records.log_tail_mass_P,
        "entropy": records.entropy_P,
        "log_z": None if records.log_z_PT is None else records.log_z_PT.reshape(-1),
    }
    sections = list(_sections(header))
    buffer = np.zeros(_end_of(sections), dtype=np.uint8)
    buffer[:WIRE_HEADER_BYTES] = np.frombuffer(header, dtype=np.uint8)
    for name, dtype, start, count in sections:
        column = columns[name]
        assert column is not None
        if column.dtype.itemsize != dtype.itemsize or column.dtype.kind != dtype.kind or column.size != count:
            raise InvalidRecordError(
                f"wire column {name} should hold {count} values of {dtype}, it holds {column.size} of {column.dtype}"
            )
        buffer[start : start + count * dtype.itemsize].view(dtype)[:] = column
    return buffer


def decode_wire(buffer: NDArray[np.uint8] | bytes | memoryview) -> Records:
    """Unpack a wire buffer; every column is a view into it.

    Args:
        buffer: What `encode_wire` or an engine's capture made; its start must be 8-byte aligned for aligned columns.

    Returns:
        The records. Call `Records.check` before trusting ids and counts.

    Raises:
        InvalidRecordError: The buffer is no wire buffer, of another version, or not as long as its header says.
    """
    data = np.frombuffer(buffer, dtype=np.uint8)
    if len(data) < WIRE_HEADER_BYTES:
        raise InvalidRecordError(f"a wire buffer starts with {WIRE_HEADER_BYTES} header bytes, got {len(data)} in all")
    header = data[:WIRE_HEADER_BYTES].tobytes()
    if header[:8] != WIRE_MAGIC:
        raise InvalidRecordError(f"a wire buffer starts with {WIRE_MAGIC!r}, this one with {header[:8]!r}")
    sections = list(_sections(header))
    if len(data) != (expected := _end_of(sections)):
        raise InvalidRecordError(f"the wire header announces {expected} bytes, the buffer has {len(data)}")
    columns: dict[str, NDArray[Any]] = {
        name: data[start : start + count * dtype.itemsize].view(dtype) for name, dtype, start, count in sections
    }
    positions = len(columns["head_counts"])
    log_z = columns.get("log_z")
    return Records(
        head_counts_P=columns["head_counts"],
        head_ids_H=columns["head_ids"],
        head_logprobs_H=columns["head_logprobs"],
        tail_counts_P=columns["tail_counts"],
        tail_ids_N=columns["tail_ids"],
        log_tail_mass_P=columns["log_tail_mass"],
        entropy_P=columns["entropy"],
        tail_logprobs_N=columns.get("tail_logprobs"),
        log_z_PT=None if log_z is None else log_z.reshape(positions, _HEADER.unpack(header)[5]),
    )


def _sections(header: bytes) -> Iterator[tuple[str, np.dtype[Any], int, int]]:
    """Name, dtype, first byte and number of values of each section that the header announces."""
    fields = _HEADER.unpack(header)
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
    listing += [("log_tail_mass", values, positions), ("entropy", values, positions)]
    if temperatures:
        listing.append(("log_z", values, positions * temperatures))
    start = WIRE_HEADER_BYTES
    for name, dtype, count in listing:
        yield name, dtype, start, count
        start += -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def _end_of(sections: list[tuple[str, np.dtype[Any], int, int]]) -> int:
    _, dtype, start, count = sections[-1]
    return start + -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
