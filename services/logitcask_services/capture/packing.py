"""Columns to one uint8 tensor in the wire layout of `logitcask_schemas.wire`, all on the device."""

import struct

import numpy as np
import torch

from logitcask_schemas.wire import FLAG_TAIL_LOGPROBS, WIRE_HEADER_BYTES, WIRE_MAGIC
from logitcask_services.capture.columns import RecordColumns

_SMALL_VOCABULARY = 65_536
"""Up to here ids fit uint16."""


def pack_wire(columns: RecordColumns, vocab_size: int) -> torch.Tensor:
    """Pack the records of one document.

    Args:
        columns: records of its positions.
        vocab_size: decides the width of ids.

    Returns:
        uint8 tensor on the columns' device; `logitcask_schemas.wire.decode_wire` reads it.
    """
    id_dtype = torch.uint16 if vocab_size <= _SMALL_VOCABULARY else torch.int32
    temperatures = 0 if columns.log_z_RT is None else columns.log_z_RT.shape[1]
    header = struct.pack(
        "<8sIIIIIIQQQQ",
        WIRE_MAGIC,
        WIRE_HEADER_BYTES,
        id_dtype.itemsize,
        columns.head_logprobs_H.dtype.itemsize,
        0 if columns.tail_logprobs_N is None else FLAG_TAIL_LOGPROBS,
        temperatures,
        0,
        columns.num_rows,
        columns.head_ids_H.shape[0],
        columns.tail_ids_N.shape[0],
        0,
    )
    sections = [
        columns.head_counts_R,
        columns.head_ids_H.to(id_dtype),
        columns.head_logprobs_H,
        columns.tail_counts_R,
        columns.tail_ids_N.to(id_dtype),
        columns.tail_logprobs_N,
        columns.log_tail_mass_R,
        columns.entropy_R,
        columns.log_z_RT,
    ]
    device = columns.head_counts_R.device
    parts = [torch.from_numpy(np.frombuffer(header, dtype=np.uint8).copy()).to(device)]
    zeros = torch.zeros(8, dtype=torch.uint8, device=device)
    for section in sections:
        if section is not None:
            flat = section.contiguous().view(-1).view(torch.uint8)
            parts += [flat, zeros[: -len(flat) % 8]]
    return torch.cat(parts)
