"""The processes of a run: one, or as many as torchrun started."""

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object


def processes() -> PartialState:
    """This process among the others; joins them on the first call, without a launcher it is alone."""
    return PartialState(cpu=not torch.accelerator.is_available())


def leave_processes() -> None:
    """Leave the process group, as the last act of a program: left open, its threads can abort a run that succeeded."""
    processes().destroy_process_group()


def fresh_accelerator_state() -> PartialState:
    """Forget the precision of an earlier run in this process, keep its process group; for a second run in a session."""
    AcceleratorState._reset_state(reset_partial_state=False)
    return processes()


def raise_together(error: Exception | None) -> None:
    """Raise the first process' error in all of them: one that went on alone would wait for the others for ever.

    Args:
        error: this process' own, or None; of a kind that is made from its message alone.
    """
    errors: list[Exception | None] = [error]
    if processes().num_processes > 1:
        pairs = gather_object([None if error is None else (type(error), str(error))])
        errors = [None if pair is None else pair[0](pair[1]) for pair in pairs]
    for first in errors:
        if first is not None:
            raise error or first
