"""Checkpoints of a student that is spread over processes: each writes its part, any number of processes reads them.

`torch.distributed.checkpoint` (DCP) writes one file for each process and an index. Student and optimizer lie there by
the parameters' names, so that another number of processes, or a single one that shards nothing, finds what it needs.
The index is a pickle: as with all of transformers' checkpoints, continue from those that you trust.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from logitcask_consumer.run_document import RunFolderError

SHARDS_NAME: Final = "sharded"
"""Folder of the parts, in a checkpoint."""


def has_shards(checkpoint: Path) -> bool:
    """Whether a checkpoint was written by processes that shared a student."""
    return (checkpoint / SHARDS_NAME).is_dir()


def require_all_shards(checkpoint: Path) -> None:
    """Raise RunFolderError unless the index of a sharded checkpoint is there, and all that it names."""
    folder = checkpoint / SHARDS_NAME
    try:
        metadata = FileSystemReader(folder).read_metadata()
    except OSError as error:
        raise RunFolderError(
            f"{folder} is no complete checkpoint: its index cannot be read ({error.strerror}). Name another checkpoint "
            "(--resume)"
        ) from error
    ends: dict[str, int] = {}
    for part in (metadata.storage_data or {}).values():
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    for name, end in sorted(ends.items()):
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if size < end:
            raise RunFolderError(
                f"{folder / name} should have {end:,} bytes at least, it has {size:,}: the checkpoint is not complete. "
                "Name another checkpoint (--resume)"
            )


def save_shards(model: Any, optimizer: Any, checkpoint: Path) -> None:
    """Write this process' part of a student and its optimizer; every process calls it.

    Raises:
        OSError, RuntimeError: on every process, where one could not write.
    """
    state = {"student": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    try:
        with _alone_without_a_warning():
            save(state, storage_writer=FileSystemWriter(checkpoint / SHARDS_NAME))
    except CheckpointException as error:  # no Exception, and all processes' tracebacks
        cause = _first(error)
        raise (OSError(cause.errno, cause.strerror) if isinstance(cause, OSError) else RuntimeError(cause)) from error


def load_student(model: Any, checkpoint: Path) -> None:
    """Give a student, spread or whole, the weights of a sharded checkpoint; every process calls it.

    What the checkpoint has beside them (projections of hints, where the student has none) is left there.

    Raises:
        RunFolderError: the checkpoint is not complete, or of another student.
    """
    state = get_model_state_dict(model)
    _load({"student": state}, checkpoint)
    set_model_state_dict(model, state)


def load_optimizer(model: Any, optimizer: Any, checkpoint: Path) -> None:
    """Give an optimizer of a student, spread or whole, the state of a sharded checkpoint; every process calls it.

    Raises:
        RunFolderError: the checkpoint is not complete, or of another student.
    """
    state = get_optimizer_state_dict(model, optimizer)
    _load({"optimizer": state}, checkpoint)
    set_optimizer_state_dict(model, optimizer, state)


def spread_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Give the optimizer of a spread student the state of a whole one; every process has all of it.

    Args:
        optimizer: whose groups hold the same parameters in the same order.
        state: of the whole student's optimizer, as torch saves it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    spread = {
        number: {name: _spread_as(parameters[number], value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": spread})


def whole_student(model: Any) -> dict[str, Tensor]:
    """All weights of a spread student, whole and on the CPU of the first process; empty on others. Every one calls it.

    They are gathered one after the other: no device holds more than its part and one of them.
    """
    weights: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (first := names.setdefault(id(parameter), name)) != name and weights:
            weights[name] = weights[first]  # tied: one tensor again, which transformers saves once
    return weights


def spread_student(model: Any, weights: dict[str, Tensor]) -> None:
    """Give a spread student the weights of a whole one; every process has all of them."""
    own: dict[str, Any] = get_model_state_dict(model)
    set_model_state_dict(model, {name: _spread_as(own[name], value) for name, value in weights.items()})


def _load(state: dict[str, Any], checkpoint: Path) -> None:
    """Fill a state's tensors from the files."""
    require_all_shards(checkpoint)
    try:
        with _alone_without_a_warning():
            load(state, storage_reader=FileSystemReader(checkpoint / SHARDS_NAME))
    except (CheckpointException, RuntimeError, ValueError, OSError) as error:
        raise RunFolderError(
            f"{checkpoint / SHARDS_NAME} does not hold this student and its optimizer: "
            f"{str(_first(error)).partition(chr(10))[0]}. Name another checkpoint (--resume)"
        ) from error


@contextmanager
def _alone_without_a_warning() -> Iterator[None]:
    """DCP warns a process that is alone, whatever it is told; here it is meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _first(error: BaseException) -> BaseException:
    """The first process' error, where DCP reports those of many."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _spread_as(own: Tensor, whole: Any) -> Any:
    """A whole tensor, which every process has, as the student's own is spread; numbers stay what they are."""
    if not isinstance(own, DTensor) or not isinstance(whole, torch.Tensor) or whole.shape != own.shape:
        return whole
    return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
