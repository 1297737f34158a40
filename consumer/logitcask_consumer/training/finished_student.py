"""How a run saves its trained student: whole or as adapters, merged, in the precision that was asked for.

What is converted is the saved folder, not the model in training, so it is the same for every kind of run: one process
or many, a student spread over them or not.
"""

from pathlib import Path
from typing import Any, Final

import torch

from logitcask_consumer.config import SaveDtype, TrainConfig
from logitcask_consumer.run_document import PARTIAL_NAME, RunFolderError, explained_writes
from logitcask_consumer.student.adapters import ADAPTER_NAME, base_folder, merged
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.training.checkpoints import partial_folder, publish_model
from logitcask_schemas.errors import ModelError

DTYPES: Final[dict[SaveDtype, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def save_student(trainer: Any, output: Path, *, merge: bool, dtype: SaveDtype) -> None:
    """Save the trained student; half of a model never lies in the output folder.

    Args:
        trainer: a `DistillTrainer` at the end of its run.
        output: folder of the run.
        merge: adapters become part of the weights.
        dtype: of the saved weights.

    Raises:
        RunWriteError: the disk is full, or broken. The last checkpoint is complete.
        ModelError: a weight is too large for the precision.
    """
    partial = output / PARTIAL_NAME
    with explained_writes(output, "The last checkpoint is complete: free space and give the same command again"):
        try:
            trainer.save_model(str(partial))
            if trainer.args.should_save:
                (partial / "README.md").unlink(missing_ok=True)  # peft's card, of which nothing is filled in
                if merge or dtype != "float32":
                    converted(partial, merge=merge, dtype=dtype)
                publish_model(partial, output)
        except BaseException:
            partial_folder(output)
            raise


def require_saved_alike(before: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to take a finished run for one whose student is saved otherwise.

    Args:
        before: the run's document.
        config: what is asked for now.

    Raises:
        RunFolderError: names both.
    """
    resolved = before.get("resolved", {})
    then = {"merge": resolved.get("merge", False), "save_dtype": resolved.get("save_dtype", "float32")}
    now: dict[str, Any] = {"merge": config.merge, "save_dtype": config.save_dtype}
    if then != now:
        listing = "; ".join(
            f"{name}: {then[name]!r} there, {now[name]!r} now" for name in then if then[name] != now[name]
        )
        raise RunFolderError(
            f"{config.output} is finished, and its student was saved otherwise ({listing}). Give the same command "
            "with the earlier values, or another output folder"
        )


def converted(folder: Path, *, merge: bool, dtype: SaveDtype) -> None:
    """Replace a saved student by itself, merged and in another precision; the tokenizer stays as it is.

    Raises:
        ModelError: a weight is too large for the precision.
    """
    is_adapter = (folder / ADAPTER_NAME).is_file()
    if is_adapter and not merge:
        _convert_adapters(folder / "adapter_model.safetensors", DTYPES[dtype])
        return
    model = merged(load_model(base_folder(folder)), folder) if is_adapter else load_model(folder)
    for name, weight in model.state_dict().items():
        _require_finite(name, weight, DTYPES[dtype])
    for path in {path for pattern in ("adapter_*", "*.safetensors*", "README.md") for path in folder.glob(pattern)}:
        path.unlink()
    model.to(DTYPES[dtype]).save_pretrained(folder)


def _convert_adapters(path: Path, dtype: torch.dtype) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, weight in tensors.items():
        _require_finite(name, weight, dtype)
    save_file({name: weight.to(dtype) for name, weight in tensors.items()}, path, metadata=metadata)


def _require_finite(name: str, weight: torch.Tensor, dtype: torch.dtype) -> None:
    if weight.is_floating_point() and not bool(weight.to(dtype).isfinite().equal(weight.isfinite())):
        largest = float(weight[weight.isfinite()].abs().max())
        raise ModelError(
            f"the trained student cannot be saved in {dtype}: {name} reaches {largest:g}, {dtype} ends at "
            f"{torch.finfo(dtype).max:g}. Its last checkpoint is complete; give the same command with --save-dtype "
            "bfloat16 or float32"
        )
