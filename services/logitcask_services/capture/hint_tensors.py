"""Hints on the device: coded there, step by step, to the same bytes as `HintRows.encode` gives.

Shape legend: R rows, K layers, D width of the teacher's vectors, W numbers stored of one, G groups of C = 64
channels (the last one padded), O outlier channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from logitcask_schemas.record.hint_spec import GROUP, OUTLIERS, HintSpec, num_groups
from logitcask_schemas.record.hint_wire import HINT_HEADER, HINT_MAGIC
from logitcask_schemas.record.hints import (
    F16_EXPONENT,
    F16_LARGEST,
    I8_LARGEST_SCALE,
    I8_LEVELS,
    MIN_EXPONENT,
    SMALLEST_NORMAL,
    projection_DN,
    require_width,
)

_MANTISSA_BITS = 23
_EXPONENT_BIAS = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class HintTensors:
    """Coded rows of a spec; arrays by name, in the order of `HintRows.arrays`, each beginning with R."""

    arrays: dict[str, torch.Tensor]
    width: int

    @property
    def num_bytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @classmethod
    def join(cls, parts: Sequence["HintTensors"]) -> "HintTensors":
        """Rows of all parts, in order (at least one part, all of one spec)."""
        if len(parts) == 1:
            return parts[0]
        arrays = {name: torch.cat([part.arrays[name] for part in parts]) for name in parts[0].arrays}
        return cls(arrays=arrays, width=parts[0].width)

    def split(self, row_counts: Sequence[int]) -> list["HintTensors"]:
        """Cut into runs of rows, which add up to R; copies, so that none keeps the others' memory."""
        cut = {name: torch.split(array, list(row_counts)) for name, array in self.arrays.items()}
        return [
            HintTensors(arrays={name: parts[i].clone() for name, parts in cut.items()}, width=self.width)
            for i in range(len(row_counts))
        ]


def encode_hints(values_RKD: torch.Tensor, spec: HintSpec) -> HintTensors:
    """Code vectors; numbers that are not finite stay so, which `HintRows.check` notices.

    Args:
        values_RKD: any float dtype, on any device.
        spec: says how.

    Raises:
        InvalidRecordError: they are too wide.
    """
    values = values_RKD.to(torch.float32)
    width = values.shape[2]
    require_width(width)
    if spec.codec == "i8":
        return HintTensors(arrays=_encode_i8(values), width=width)
    if spec.projected is not None:
        matrix = torch.from_numpy(np.array(projection_DN(spec.seed, width, spec.projected))).to(values.device)
        values = values @ matrix
    _, exponents_RK = torch.frexp(values.abs().amax(dim=2))
    clipped_RK = (exponents_RK - F16_EXPONENT).clamp(min=MIN_EXPONENT)
    # A power of two by its bits: a power function may be off by one.
    scales_RK = ((clipped_RK + _EXPONENT_BIAS) << _MANTISSA_BITS).to(torch.int32).view(torch.float32)
    scales_RK1 = scales_RK[..., None]
    # Infinity stays what it is: whoever checks the rows shall see it.
    clipped = torch.where(values.isinf(), values, values.clamp(-F16_LARGEST, F16_LARGEST))
    return HintTensors(arrays={"codes": (clipped / scales_RK1).to(torch.float16), "scales": scales_RK1}, width=width)


def _encode_i8(values: torch.Tensor) -> dict[str, torch.Tensor]:
    rest, magnitudes = values.clone(), values.abs()
    channels, outliers = list[torch.Tensor](), list[torch.Tensor]()
    for _ in range(min(OUTLIERS, values.shape[2])):
        channel_RK1 = magnitudes.argmax(dim=2, keepdim=True)
        channels.append(channel_RK1)
        outliers.append(values.gather(2, channel_RK1))
        magnitudes.scatter_(2, channel_RK1, -1.0)
        rest.scatter_(2, channel_RK1, 0.0)
    width = values.shape[2]
    padded = torch.nn.functional.pad(rest, (0, -width % GROUP))
    groups_RKGC = padded.reshape(*padded.shape[:2], num_groups(width), GROUP)
    largest_RKG = groups_RKGC.abs().amax(dim=3)
    scales_RKG = largest_RKG / I8_LEVELS
    # Infinity stays what it is: whoever checks the rows shall see it.
    scales_RKG = torch.where(scales_RKG.isinf(), scales_RKG, scales_RKG.clamp(max=I8_LARGEST_SCALE))
    falls_short = (scales_RKG < SMALLEST_NORMAL) & (scales_RKG * I8_LEVELS < largest_RKG)
    scales_RKG = torch.where(falls_short, torch.nextafter(scales_RKG, torch.ones_like(scales_RKG)), scales_RKG)
    divisors_RKG1 = torch.where(scales_RKG > 0, scales_RKG, 1.0)[..., None]
    codes = (groups_RKGC / divisors_RKG1).round().clamp(-I8_LEVELS, I8_LEVELS).to(torch.int8)
    return {
        "codes": codes.flatten(2)[:, :, :width],
        "scales": scales_RKG,
        "outlier_channels": torch.cat(channels, dim=2).to(torch.int32),
        "outlier_values": torch.cat(outliers, dim=2),
    }


def pack_hints(hints: HintTensors) -> torch.Tensor:
    """The rows of one document as uint8, on their device; `record.hint_wire.decode_hints` reads it."""
    header = HINT_HEADER.pack(HINT_MAGIC, len(hints.arrays["codes"]), hints.width)
    device = hints.arrays["codes"].device
    parts = [torch.from_numpy(np.frombuffer(header, dtype=np.uint8).copy()).to(device)]
    zeros = torch.zeros(8, dtype=torch.uint8, device=device)
    for name, array in hints.arrays.items():
        stored = array.to(torch.uint16) if name == "outlier_channels" else array
        flat = stored.contiguous().view(-1).view(torch.uint8)
        parts += [flat, zeros[: -len(flat) % 8]]
    return torch.cat(parts)
