"""Which dtype `auto` is: never less exact than the checkpoint.

Engines have rules of their own (vLLM lowers a float32 checkpoint to float16 for pooling models), so they are never
asked: they get the name that is chosen here.
"""

from dataclasses import dataclass
from typing import Final

from logitcask_schemas.errors import ModelError

COMPUTE_DTYPES: Final = ("float32", "bfloat16", "float16")
_SPELLINGS: Final = {"half": "float16", "float": "float32", "float64": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What the choice depends on besides the checkpoint."""

    accelerator: bool
    """False on a CPU."""
    bfloat16: bool
    """Whether the hardware multiplies bfloat16 (AVX512-BF16 or AMX on a CPU) rather than emulating it."""


def checkpoint_dtype(declared: str | None, stored: str | None) -> str | None:
    """The narrowest compute dtype that holds the checkpoint.

    Args:
        declared: `dtype` or `torch_dtype` of the configuration, if any.
        stored: the dtype of most floating-point bytes of the weights, if any. Quantised weights are held in others.

    Returns:
        One of `COMPUTE_DTYPES`, float32 where the two disagree; None where neither says.
    """
    dtypes = {_SPELLINGS.get(name, name) for name in (declared, stored) if name is not None}
    dtypes &= set(COMPUTE_DTYPES)
    if not dtypes:
        return None
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def choose_dtype(asked: str, checkpoint: str | None, platform: Platform) -> str:
    """The compute dtype.

    `auto` is the checkpoint's own, but float32, which holds every checkpoint, where that would be slow: bfloat16
    without hardware for it, and float16 on any CPU. So it is float16 for a float16 checkpoint on an
    accelerator and never else.

    Args:
        asked: "auto" or one of `COMPUTE_DTYPES`, which is taken as it is.
        checkpoint: see `checkpoint_dtype`; None counts as float32.
        platform: of the machine.

    Raises:
        ModelError: there is no such dtype.
    """
    if asked != "auto":
        if asked not in COMPUTE_DTYPES:
            raise ModelError(f"dtype {asked!r} is not one of auto, {', '.join(COMPUTE_DTYPES)}")
        return asked
    match checkpoint:
        case "bfloat16" if platform.bfloat16:
            return "bfloat16"
        case "float16" if platform.accelerator:
            return "float16"
        case _:
            return "float32"
