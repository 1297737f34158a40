"""The processes of a run: one, or as many as torchrun started."""

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState


def processes() -> PartialState:
    """This process among the others; joins them on the first call, without a launcher it is alone."""
    return PartialState(cpu=not torch.accelerator.is_available())


def fresh_accelerator_state() -> PartialState:
    """Forget the precision of an earlier run in this process, keep its process group; for a second run in a session."""
    AcceleratorState._reset_state(reset_partial_state=False)
    return processes()
