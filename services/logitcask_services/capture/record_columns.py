"""Records on the device: columns as torch tensors, to cut, to join, and to pack into the wire layout.

Shape legend: R rows (positions), H head entries, N draws, W values per position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from logitcask_schemas.record.wire import FLAG_TAIL_LOGPROBS, WIRE_HEADER, WIRE_HEADER_BYTES, WIRE_MAGIC


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordColumns:
    """Columns over R rows; entries lie end to end, cut by the counts. Values are float16 or float32, ids int32."""

    head_counts_R: torch.Tensor
    head_ids_H: torch.Tensor
    head_logprobs_H: torch.Tensor
    tail_counts_R: torch.Tensor
    tail_ids_N: torch.Tensor
    tail_logprobs_N: torch.Tensor | None
    position_columns: dict[str, torch.Tensor]
    """By name, [R] or [R, W], in the order of `record.position_columns`."""

    @property
    def num_rows(self) -> int:
        """R."""
        return self.head_counts_R.shape[0]

    @classmethod
    def join(cls, parts: Sequence["RecordColumns"]) -> "RecordColumns":
        """Rows of all parts, in order (at least one part, all of one spec)."""
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {}
        for name in cls.__slots__:
            values = [getattr(part, name) for part in parts]
            if isinstance(values[0], dict):
                columns[name] = {key: torch.cat([value[key] for value in values]) for key in values[0]}
            else:
                columns[name] = None if values[0] is None else torch.cat(values)
        return cls(**columns)

    def on_host(self) -> "RecordColumns":
        """The same columns in this machine's memory: one transfer from an accelerator; on a CPU they are there."""
        if self.head_counts_R.device.type == "cpu":
            return self
        return self.in_one_copy(torch.Tensor.cpu)

    def in_one_copy(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "RecordColumns":
        """Columns whose bytes all lie in what `copy` makes of one uint8 tensor."""
        columns: dict[str, torch.Tensor] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            columns |= {f"{name}.{key}": column for key, column in value.items()} if isinstance(value, dict) else {}
            columns |= {name: value} if isinstance(value, torch.Tensor) else {}
        # Wide numbers first, so that each column begins at a multiple of its width.
        order = sorted(columns, key=lambda name: -columns[name].itemsize)
        copied = copy(torch.cat([columns[name].contiguous().view(-1).view(torch.uint8) for name in order]))
        parts = copied.split([columns[name].nbytes for name in order])  # type: ignore[no-untyped-call]
        made = {
            name: part.view(columns[name].dtype).view(columns[name].shape)
            for name, part in zip(order, parts, strict=True)
        }
        return RecordColumns(
            **{name: made.get(name) for name in self.__slots__ if name != "position_columns"},  # type: ignore[arg-type]
            position_columns={key: made[f"position_columns.{key}"] for key in self.position_columns},
        )

    def split(self, row_counts: Sequence[int]) -> list["RecordColumns"]:
        """Cut into runs of rows; views, no copies. The counts add up to R."""
        if len(row_counts) == 1:
            return [self]
        bounds = torch.tensor([0, *row_counts]).cumsum(0)
        head_bounds = _entry_bounds(self.head_counts_R, bounds)
        tail_bounds = _entry_bounds(self.tail_counts_R, bounds)
        rows = bounds.tolist()
        parts = []
        for i in range(len(row_counts)):
            row, head, tail = (slice(cut[i], cut[i + 1]) for cut in (rows, head_bounds, tail_bounds))
            parts.append(
                RecordColumns(
                    head_counts_R=self.head_counts_R[row],
                    head_ids_H=self.head_ids_H[head],
                    head_logprobs_H=self.head_logprobs_H[head],
                    tail_counts_R=self.tail_counts_R[row],
                    tail_ids_N=self.tail_ids_N[tail],
                    tail_logprobs_N=None if self.tail_logprobs_N is None else self.tail_logprobs_N[tail],
                    position_columns={name: column[row] for name, column in self.position_columns.items()},
                )
            )
        return parts


def _entry_bounds(counts_R: torch.Tensor, bounds: torch.Tensor) -> list[int]:
    """Entries before each row bound; one transfer from the device."""
    before = torch.nn.functional.pad(counts_R.cumsum(0, dtype=torch.int64), (1, 0))
    result: list[int] = before[bounds.to(before.device)].tolist()
    return result


_SMALL_VOCABULARY = 65_536
"""Up to here ids fit uint16."""


def pack_wire(columns: RecordColumns, vocab_size: int) -> torch.Tensor:
    """Pack the records of one document.

    Args:
        columns: records of its positions.
        vocab_size: decides the width of ids.

    Returns:
        uint8 tensor on the columns' device; `logitcask_schemas.record.wire.decode_wire` reads it.
    """
    id_dtype = torch.uint16 if vocab_size <= _SMALL_VOCABULARY else torch.int32
    log_z = columns.position_columns.get("log_z")
    header = WIRE_HEADER.pack(
        WIRE_MAGIC,
        WIRE_HEADER_BYTES,
        id_dtype.itemsize,
        columns.head_logprobs_H.dtype.itemsize,
        0 if columns.tail_logprobs_N is None else FLAG_TAIL_LOGPROBS,
        0 if log_z is None else log_z.shape[1],
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
        *columns.position_columns.values(),
    ]
    device = columns.head_counts_R.device
    parts = [torch.from_numpy(np.frombuffer(header, dtype=np.uint8).copy()).to(device)]
    zeros = torch.zeros(8, dtype=torch.uint8, device=device)
    for section in sections:
        if section is not None:
            flat = section.contiguous().view(-1).view(torch.uint8)
            parts += [flat, zeros[: -len(flat) % 8]]
    return torch.cat(parts)
