"""How a run saves its trained student: whole or as adapters, merged, quantised, in the precision that was asked for.

What is converted is the saved folder, not the model in training, so it is the same for every kind of run: one process
or many, a student spread over them or not.
"""

from pathlib import Path
from typing import Any, Final

import torch

from logitcask_consumer.config import SaveDtype, TrainConfig
from logitcask_consumer.run_document import (
    PARTIAL_NAME,
    RUN_NAME,
    RunFolderError,
    explained_writes,
    require_finished,
    require_unused,
    write_origin,
)
from logitcask_consumer.student.adapters import ADAPTER_NAME, base_folder, merged
from logitcask_consumer.student.loading import load_model, load_tokenizer, require_model_folder
from logitcask_consumer.student.quantization import (
    Scheme,
    as_stored,
    fitting_layers,
    quantization_note,
    read_scheme,
    require_same_weights,
    require_unquantized,
    require_unrounded,
    round_weights,
)
from logitcask_consumer.training.checkpoints import partial_folder, publish_model
from logitcask_schemas.errors import ModelError

DTYPES: Final[dict[SaveDtype, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def save_student(trainer: Any, config: TrainConfig) -> None:
    """Save the trained student; half of a model never lies in the output folder.

    Args:
        trainer: a `DistillTrainer` at the end of its run.
        config: the run.

    Raises:
        RunWriteError: the disk is full, or broken. The last checkpoint is complete.
        ModelError: a weight is too large for the precision, or torchao stores others than were trained.
    """
    output = config.output
    scheme = None if config.quantize is None else read_scheme(config.quantize)
    partial = output / PARTIAL_NAME
    with explained_writes(output, "The last checkpoint is complete: free space and give the same command again"):
        try:
            trainer.save_model(str(partial))
            if trainer.args.should_save:
                (partial / "README.md").unlink(missing_ok=True)  # peft's card, of which nothing is filled in
                if config.merge or config.save_dtype != "float32" or scheme is not None:
                    converted(
                        partial,
                        merge=config.merge,
                        dtype=config.save_dtype,
                        scheme=scheme,
                        stored=config.save_quantized,
                    )
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
    defaults: dict[str, Any] = {"merge": False, "save_dtype": "float32", "save_quantized": False}
    then = {name: resolved.get(name, default) for name, default in defaults.items()}
    now: dict[str, Any] = {name: getattr(config, name) for name in defaults}
    if then != now:
        listing = "; ".join(
            f"{name}: {then[name]!r} there, {now[name]!r} now" for name in then if then[name] != now[name]
        )
        raise RunFolderError(
            f"{config.output} is finished, and its student was saved otherwise ({listing}). Give the same command "
            "with the earlier values, or another output folder"
        )


def converted(
    folder: Path, *, merge: bool, dtype: SaveDtype, scheme: Scheme | None = None, stored: bool = False
) -> None:
    """Replace a saved student by itself, merged, quantised and in another precision; the tokenizer stays as it is.

    Args:
        folder: of the student, or of its adapters, in float32.
        merge: adapters become part of the weights.
        dtype: of the saved weights; float32 where they are `stored`.
        scheme: what the weights of the layers are rounded to.
        stored: as torchao stores them, instead of the numbers that they stand for.

    Raises:
        ModelError: a weight is too large for the precision, or torchao stores others than it rounds to.
        QuantizationError: the scheme does not fit a layer.
    """
    is_adapter = (folder / ADAPTER_NAME).is_file()
    if is_adapter and not merge:
        _convert_adapters(folder / "adapter_model.safetensors", DTYPES[dtype])
        return
    model = merged(load_model(base_folder(folder)), folder) if is_adapter else load_model(folder)
    saved = as_stored(folder, model, scheme) if scheme is not None and stored else model
    if scheme is not None:
        round_weights(model, scheme)
    if saved is not model:
        require_same_weights(saved, model)
    for name, weight in model.state_dict().items():
        _require_finite(name, weight, DTYPES[dtype])
    for path in {path for pattern in ("adapter_*", "*.safetensors*", "README.md") for path in folder.glob(pattern)}:
        path.unlink()
    saved.to(DTYPES[dtype]).save_pretrained(folder)


def quantized_copy(folder: Path, output: Path, *, scheme: Scheme, dtype: SaveDtype, stored: bool) -> str:
    """Save a model with quantised layers in another folder, without any training.

    Args:
        folder: of a causal LM.
        output: of what is made; new, or without a model.
        scheme: what the weights of the layers are rounded to.
        dtype: see `converted`.
        stored: see `converted`.

    Returns:
        How much of the model is rounded, for people.

    Raises:
        ModelError: the folder is no causal LM with weights of its own, or is quantised already; see `converted` too.
        QuantizationError: the scheme does not fit a layer.
        RunFolderError: the output folder holds something else, or the model is that of a run that has not finished.
        RunWriteError: the disk is full, or broken.
    """
    require_finished(folder)
    require_unquantized(require_model_folder(folder, what="model"), what="model")
    require_unrounded(folder, what="model")
    if (folder / ADAPTER_NAME).is_file():
        raise ModelError(
            f"the model {folder} holds adapters, and weights are quantised whole. Train it with --merge, or name their "
            "base"
        )
    require_unused(output)
    if (output / RUN_NAME).exists():
        raise RunFolderError(f"the output folder {output} holds a training run. Name another folder (--output)")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    fitting_layers(model, scheme)
    output.mkdir(parents=True, exist_ok=True)
    partial = partial_folder(output)
    with explained_writes(output, "Free space and give the same command again"):
        try:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            converted(partial, merge=False, dtype=dtype, scheme=scheme, stored=stored)
            write_origin(partial, folder)
            publish_model(partial, output)
        except BaseException:
            partial_folder(output)
            raise
    return quantization_note(model, scheme)


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
