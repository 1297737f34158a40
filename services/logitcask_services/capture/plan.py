"""How capture goes over rows on a kind of device: how many at a time, and whether it looks at values in between.

A CPU reads a value back for nothing, and is fast while a few rows stay in its cache. An accelerator runs behind the
program: every operation costs some microseconds to launch, however few rows it has, and a value that is read back
makes the program wait for all that was launched before. There many rows go through each operation, nothing is cut to
the size of a cache, and rare cases are masked rather than asked for.

No plan changes a result; a test holds both to the same bytes.
"""

from dataclasses import dataclass
from typing import Final

import torch

CPU_BYTES: Final = 64 * 2**20
"""Float32 logits of a run on a CPU."""
ACCELERATOR_BYTES: Final = 2**30
"""Scratch memory of a run on an accelerator: three float32 buffers as wide as the vocabulary. An operation over one of
them then takes longer than its launch, whatever the vocabulary."""
_FEWEST_ROWS = 32
_CPU_ROWS = 256
_CPU_ROWS_OF_PASSES = 16
_CPU_GATHERED = 2**18
_ACCELERATOR_GATHERED = 2**25


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePlan:
    """Sizes and habits of a capture."""

    rows: int
    """Positions reduced at a time, which bounds memory."""
    rows_of_passes: int
    """Of them those that the passes over the vocabulary take at a time."""
    gathered: int
    """Entries of gathered blocks that are worked on at a time."""
    reads_back: bool
    """Whether to look at a value in order to leave work out."""


def cpu_plan(vocab_size: int) -> CapturePlan:
    """Few rows: what one pass leaves is still in the cache when the next comes by."""
    return CapturePlan(
        rows=min(_CPU_ROWS, max(_FEWEST_ROWS, CPU_BYTES // (4 * vocab_size))),
        rows_of_passes=_CPU_ROWS_OF_PASSES,
        gathered=_CPU_GATHERED,
        reads_back=True,
    )


def accelerator_plan(vocab_size: int) -> CapturePlan:
    """As many rows as the memory allows, and no value read back."""
    rows = max(_FEWEST_ROWS, ACCELERATOR_BYTES // (3 * 4 * vocab_size))
    return CapturePlan(rows=rows, rows_of_passes=rows, gathered=_ACCELERATOR_GATHERED, reads_back=False)


def plan_for(device: torch.device, vocab_size: int) -> CapturePlan:
    """The plan of a device."""
    return cpu_plan(vocab_size) if device.type == "cpu" else accelerator_plan(vocab_size)


class Scratch:
    """Buffers that are kept from call to call. Captures that take turns share one, since theirs are large."""

    def __init__(self) -> None:
        """Without any yet."""
        self._buffers: dict[str, torch.Tensor] = {}

    def rows(self, name: str, count: int, width: int, *, room: int, device: torch.device) -> torch.Tensor:
        """The first rows of a float32 buffer, [count, width], holding anything.

        Args:
            name: of the buffer.
            count: rows wanted now.
            width: of a row.
            room: rows that a new buffer is made for.
            device: where.
        """
        size, buffer = max(count, room) * width, self._buffers.get(name)
        if buffer is None or buffer.device != device or len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.float32, device=device)
            self._buffers[name] = buffer
        return buffer[: count * width].view(count, width)
