"""How fast a teacher reads on one GPU: operations per token, peaks, and which of compute and memory limits it."""

import math
from dataclasses import dataclass
from typing import Final

from logitcask_schemas.errors import OptionError
from logitcask_schemas.planning.accelerators import BYTES_PER_WEIGHT, Accelerator, ComputeDtype

WIDTH_PER_LAYER: Final = 128
"""Width over number of layers where neither is given; models from 8 to 405 billion parameters have 100 to 130."""
WEIGHTS_SHARE: Final = 0.8
"""Of a GPU's memory that weights may take; the rest is for keys and values, logits and the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherShape:
    """What the cost of a forward pass depends on."""

    params: float
    active_params: float
    """That a token passes through: fewer than `params` in mixtures of experts."""
    layers: int
    width: int

    @classmethod
    def of(
        cls, params: float, *, active_params: float | None = None, layers: int | None = None, width: int | None = None
    ) -> "TeacherShape":
        """A shape with what is not given estimated from params = 12 layers width^2 and width = 128 layers.

        Raises:
            OptionError: More active parameters than there are.
        """
        active = params if active_params is None else active_params
        if active > params:
            raise OptionError(f"--active-params {active:g} are more than --teacher-params {params:g}")
        if layers is None and width is None:
            layers = max(1, round((active / (12 * WIDTH_PER_LAYER**2)) ** (1 / 3)))
        if layers is None and width is not None:
            layers = max(1, round(active / (12 * width**2)))
        assert layers is not None
        if width is None:
            width = max(1, round(math.sqrt(active / (12 * layers))))
        return cls(params=params, active_params=active, layers=layers, width=width)

    def flops_per_token(self, document_tokens: float) -> float:
        """Of a forward pass over whole documents: 2 per active parameter, and attention to half a document on average.

        Scores and weighted sums are 4 * width operations per layer and earlier token.

        Args:
            document_tokens: Mean length L.
        """
        return 2 * self.active_params + 2 * self.layers * self.width * document_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Of one replica of the teacher."""

    tokens_per_gpu_second: float
    gpus_per_replica: int
    """The smallest power of two whose memories hold the weights."""
    limit: str
    """`compute`, or `memory` where reading the weights takes longer than a step's operations."""


def pace(
    shape: TeacherShape,
    gpu: Accelerator,
    *,
    dtype: ComputeDtype,
    mfu: float,
    document_tokens: float,
    step_tokens: int,
    capture_ratio: float,
) -> Pace:
    """Tokens per second and GPU.

    Args:
        shape: Of the teacher.
        gpu: What it runs on.
        dtype: Of weights and products.
        mfu: Share of the peak FLOP/s that a prefill reaches.
        document_tokens: Mean length.
        step_tokens: Tokens of one step of the engine, which reads all weights once.
        capture_ratio: Throughput with capture over that of the same engine without.

    Raises:
        OptionError: The GPU has no units for the dtype.
    """
    weights = shape.params * BYTES_PER_WEIGHT[dtype]
    compute = step_tokens * shape.flops_per_token(document_tokens) / (gpu.flops(dtype) * mfu)
    memory = weights / gpu.memory_bandwidth
    replica = 1
    while replica * gpu.memory_bytes * WEIGHTS_SHARE < weights:
        replica *= 2
    return Pace(
        tokens_per_gpu_second=step_tokens / max(compute, memory) * capture_ratio,
        gpus_per_replica=replica,
        limit="compute" if compute >= memory else "memory",
    )
