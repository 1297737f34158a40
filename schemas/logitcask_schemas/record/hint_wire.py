"""The packed form of a document's hints, which follows its records in an engine's buffer; little-endian.

header    32 bytes: magic, rows R, width D, zeros
the arrays of `record.hints.hint_layout`, each from a multiple of 8 bytes on, the gaps zero
"""

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import MAX_WIDTH, HintRows, hint_layout
from logitcask_schemas.record.records import Records
from logitcask_schemas.record.wire import WIRE_HEADER_BYTES, decode_wire, end_of_sections, wire_sections

HINT_MAGIC: Final = b"LCHINT01"
HINT_HEADER: Final = struct.Struct("<8sQQ8x")
_ALIGNMENT: Final = 8


def decode_document(buffer: NDArray[np.uint8], spec: CaptureSpec) -> tuple[Records, HintRows | None]:
    """Unpack what an engine captured of a document; arrays are views of the buffer.

    Args:
        buffer: Records, and hints behind them where the spec has some.
        spec: What was captured.

    Raises:
        InvalidRecordError: The buffer is no such buffer, or not as long as its headers say.
    """
    if spec.hints is None:
        return decode_wire(buffer, spec), None
    if len(buffer) < WIRE_HEADER_BYTES:
        raise InvalidRecordError(
            f"a wire buffer starts with {WIRE_HEADER_BYTES} header bytes, got {len(buffer)} in all"
        )
    end = end_of_sections(list(wire_sections(buffer[:WIRE_HEADER_BYTES].tobytes(), spec)))
    return decode_wire(buffer[:end], spec), decode_hints(buffer[end:], spec.hints)


def decode_hints(content: NDArray[np.uint8], spec: HintSpec) -> HintRows:
    """Unpack hints alone; as `decode_document`."""
    if len(content) < HINT_HEADER.size:
        raise InvalidRecordError(f"hints start with {HINT_HEADER.size} header bytes, got {len(content)} in all")
    magic, rows, width = HINT_HEADER.unpack(content[: HINT_HEADER.size].tobytes())
    if magic != HINT_MAGIC or not 1 <= width <= MAX_WIDTH:
        raise InvalidRecordError(f"hints start with {HINT_MAGIC!r} and a width, these with {magic!r} and {width}")
    arrays: dict[str, NDArray[Any]] = {}
    start = HINT_HEADER.size
    for name, (dtype, shape) in hint_layout(spec, width).items():
        size = rows * int(np.prod(shape)) * dtype.itemsize
        if start + size > len(content):
            break
        arrays[name] = content[start : start + size].view(dtype).reshape(rows, *shape)
        start += size + -size % _ALIGNMENT
    if start != len(content) or len(arrays) < len(hint_layout(spec, width)):
        raise InvalidRecordError(f"hints of {rows} rows of width {width} do not fill a buffer of {len(content)} bytes")
    return HintRows.of_arrays(arrays, width)
