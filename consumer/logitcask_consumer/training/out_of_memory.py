"""What to do where a training step needs more memory than there is: with the numbers of this run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from logitcask_consumer.config import TrainConfig
from logitcask_schemas.errors import LogitcaskError

_ON_DEVICE: Final = re.compile(r"Tried to allocate (?P<size>[\d.]+ \w+)")
_ON_CPU: Final = re.compile(r"DefaultCPUAllocator:.*?allocate (?P<bytes>\d+) bytes", re.DOTALL)
"""torch's own words; on the CPU there is no class of its own for this error."""


class MemoryShortError(LogitcaskError, MemoryError):
    """A training step needs more memory than there is."""


@contextmanager
def memory_advice(config: TrainConfig, *, micro_sequences: int, in_rounds: bool = False) -> Iterator[None]:
    """Turn an error of torch's allocators into a sentence: what was asked for, what the run has, what to set.

    Args:
        config: the run.
        micro_sequences: of a forward pass of one process.
        in_rounds: whether it is `logitcask rounds`, which has fewer options.

    Raises:
        MemoryShortError: an allocation failed.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        asked = asked_for(error)
        if asked is None:
            raise
        text = advice(config, asked, micro_sequences=micro_sequences, in_rounds=in_rounds)
        raise MemoryShortError(text) from error


def asked_for(error: RuntimeError) -> str | None:
    """How much memory an allocation wanted, in words; None where the error is another."""
    text = str(error)
    if (on_cpu := _ON_CPU.search(text)) is not None:
        return f"{int(on_cpu['bytes']) / 2**20:,.1f} MiB"
    if isinstance(error, torch.OutOfMemoryError):
        on_device = _ON_DEVICE.search(text)
        return "more memory" if on_device is None else on_device["size"]
    return None


def advice(config: TrainConfig, asked: str, *, micro_sequences: int, in_rounds: bool = False) -> str:
    """The sentence.

    Args:
        config: the run.
        asked: how much memory the failed allocation wanted.
        micro_sequences: of a forward pass of one process.
        in_rounds: whether it is `logitcask rounds`.
    """
    has = (
        f"out of memory: a step asked for {asked} more than there was, with {micro_sequences} sequences of "
        f"{config.seq_len} tokens in a forward pass (--micro-tokens {config.micro_tokens:,})"
    )
    again = "The run goes on from its last checkpoint, and these may change within a run"
    checkpointing = "" if config.gradient_checkpointing else " --gradient-checkpointing"
    if micro_sequences > 1:
        fewer = micro_sequences // 2 * config.seq_len
        also = f", or{checkpointing}, which costs time" if checkpointing else ""
        # The loss of a router is of the slots of a forward pass together.
        changes = "rounding" if config.router_loss is None else "rounding and the share of the router's loss"
        sooner = f"Give the same command with --micro-tokens {fewer}, which changes nothing but {changes}"
        return f"{has}. {sooner}{also}. {again}"
    if checkpointing:
        return f"{has}, the fewest. Give the same command with{checkpointing}, which costs time. {again}"
    others = [] if config.lora or in_rounds else ["--lora, which keeps no gradients and no optimizer for the base"]
    can_share = not (config.fsdp or config.lora or in_rounds) and config.optimizer == "adamw"
    others += ["--fsdp, over several processes"] if can_share else []
    others += [f"--seq-len {max(1, config.seq_len // 2)}", "a smaller student"]
    return (
        f"{has}, the fewest, and activations are recomputed already. Begin another run, in another output folder, with "
        f"{', or '.join(others)}"
    )
