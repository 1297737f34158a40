"""Learned projections in a run's checkpoints: beside the student, whose own files are without them.

A checkpoint's student is thus a plain Hugging Face folder, or plain adapters, as the trained one is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from logitcask_consumer.hints.bound import HINTS_NAME, hint_modules
from logitcask_consumer.run_document import RunFolderError, share_file

PROJECTIONS_NAME: Final = "hint_projections.safetensors"


def without_hints(state: dict[str, Any]) -> dict[str, Any]:
    """The entries of a student's state that are its own."""
    return {name: value for name, value in state.items() if f"{HINTS_NAME}." not in name}


def learned_projections(model: Any) -> dict[str, Tensor]:
    """What a student carries of learned projections, by name, whole and on the CPU; every process calls it.

    FSDP spreads a parameter over the processes, which gather it here.
    """
    modules = hint_modules(model)
    if modules is None:
        return {}
    whole = {}
    for name, value in modules.state_dict().items():
        gathered = value.full_tensor() if hasattr(value, "full_tensor") else value
        whole[name] = gathered.detach().cpu().contiguous()
    return whole


def save_projections(projections: dict[str, Tensor], folder: Path) -> None:
    """Write them into a checkpoint that is not published yet."""
    if projections:
        save_file(projections, folder / PROJECTIONS_NAME)
        share_file(folder / PROJECTIONS_NAME)


@contextmanager
def hints_apart(model: Any) -> Iterator[None]:
    """The student without its modules for hints, within the block."""
    modules = hint_modules(model)
    if modules is not None:
        delattr(model, HINTS_NAME)
    try:
        yield
    finally:
        if modules is not None:
            setattr(model, HINTS_NAME, modules)


def load_projections(model: Any, checkpoint: Path) -> None:
    """Continue with the projections of a checkpoint; where FSDP spreads them over processes, every one calls it.

    Raises:
        RunFolderError: it lacks them, or they are others.
    """
    modules = hint_modules(model)
    if modules is None or not modules.state_dict():
        return
    path = checkpoint / PROJECTIONS_NAME
    try:
        own = modules.state_dict()
        modules.load_state_dict({name: _spread_as(own.get(name), whole) for name, whole in load_file(path).items()})
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise RunFolderError(
            f"{path}, the learned projections of this run's hint losses, cannot be read ({reason}); use another "
            "checkpoint (--resume)"
        ) from error


def _spread_as(own: Tensor | None, whole: Tensor) -> Tensor:
    """A whole matrix, which every process has, as FSDP spreads the student's own; as it is where nothing is spread."""
    if not isinstance(own, DTensor):
        return whole
    return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
