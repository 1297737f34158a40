"""The wire form by the specification, in numpy: what engines' packing is compared with."""

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import Records
from logitcask_schemas.record.wire import (
    FLAG_TAIL_LOGPROBS,
    WIRE_HEADER,
    WIRE_HEADER_BYTES,
    WIRE_MAGIC,
    end_of_sections,
    wire_sections,
)


def encode_wire(records: Records, spec: CaptureSpec) -> NDArray[np.uint8]:
    """Pack records into one buffer.

    Args:
        records: ids uint16 or uint32, values float16 or float32, each the same dtype in all columns.
        spec: What was captured.

    Returns:
        uint8 buffer of the layout above.

    Raises:
        InvalidRecordError: A column has another dtype than the wire can carry.
    """
    ids, values = records.head_ids_H.dtype, records.head_logprobs_H.dtype
    if ids not in (np.uint16, np.uint32) or values not in (np.float16, np.float32):
        raise InvalidRecordError(
            f"the wire carries ids as uint16 or uint32 and values as float16 or float32, got {ids} and {values}"
        )
    header = WIRE_HEADER.pack(
        WIRE_MAGIC,
        WIRE_HEADER_BYTES,
        ids.itemsize,
        values.itemsize,
        0 if records.tail_logprobs_N is None else FLAG_TAIL_LOGPROBS,
        len(spec.temperatures),
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
        **{name: values.reshape(-1) for name, values in records.position_columns.items()},
    }
    sections = list(wire_sections(header, spec))
    buffer = np.zeros(end_of_sections(sections), dtype=np.uint8)
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
