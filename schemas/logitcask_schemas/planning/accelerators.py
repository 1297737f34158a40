"""Peak figures of accelerators, as their makers publish them.

FLOP/s are those of dense matrices: data sheets that count 2:4 sparsity are halved. None of these numbers was measured
here; what a program reaches of them is the MFU, which a plan is told.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from logitcask_schemas.errors import OptionError

ComputeDtype = Literal["bf16", "fp8"]
BYTES_PER_WEIGHT: Final[dict[ComputeDtype, int]] = {"bf16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One GPU."""

    name: str
    bf16_flops: float
    """Dense, per second."""
    fp8_flops: float | None
    """Dense, per second; None where there are no such units."""
    memory_bytes: float
    memory_bandwidth: float
    """Bytes per second."""
    source: str

    def flops(self, dtype: ComputeDtype) -> float:
        """Peak FLOP/s of this dtype; OptionError where it has none."""
        if dtype == "bf16":
            return self.bf16_flops
        if self.fp8_flops is None:
            raise OptionError(f"--gpu {self.name} has no fp8 units; plan with --dtype bf16")
        return self.fp8_flops


_ALL: Final = (
    Accelerator(
        name="a100",
        bf16_flops=312e12,
        fp8_flops=None,
        memory_bytes=80e9,
        memory_bandwidth=2.039e12,
        source="NVIDIA A100 80GB SXM data sheet (2021)",
    ),
    Accelerator(
        name="l40s",
        bf16_flops=362e12,
        fp8_flops=733e12,
        memory_bytes=48e9,
        memory_bandwidth=0.864e12,
        source="NVIDIA L40S data sheet (2023), sparse figures halved",
    ),
    Accelerator(
        name="h100",
        bf16_flops=989.4e12,
        fp8_flops=1978.9e12,
        memory_bytes=80e9,
        memory_bandwidth=3.35e12,
        source="NVIDIA H100 SXM data sheet (2023), sparse figures halved",
    ),
    Accelerator(
        name="h200",
        bf16_flops=989.4e12,
        fp8_flops=1978.9e12,
        memory_bytes=141e9,
        memory_bandwidth=4.8e12,
        source="NVIDIA H200 SXM data sheet (2023), sparse figures halved",
    ),
    Accelerator(
        name="b200",
        bf16_flops=2250e12,
        fp8_flops=4500e12,
        memory_bytes=180e9,
        memory_bandwidth=7.7e12,
        source="NVIDIA HGX B200 data sheet (2024), sparse figures halved",
    ),
    Accelerator(
        name="mi300x",
        bf16_flops=1307.4e12,
        fp8_flops=2614.9e12,
        memory_bytes=192e9,
        memory_bandwidth=5.3e12,
        source="AMD Instinct MI300X data sheet (2023)",
    ),
)
ACCELERATORS: Final = MappingProxyType({each.name: each for each in _ALL})
"""By name."""


def accelerator_named(name: str) -> Accelerator:
    """The accelerator of this name; OptionError names those that there are."""
    if name.lower() not in ACCELERATORS:
        raise OptionError(f"--gpu {name}: unknown; there are {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name.lower()]
