"""LoRA adapters of teachers: merged into the weights once, into a folder that is a teacher like any other.

So every logit that a capture reads is one of these weights, and the identity is theirs. The folder is named by what it
was made of, published by one rename, and used again by the next start. Paper: LoRA, arXiv 2106.09685.
"""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.errors import MissingExtraError, ModelError
from logitcask_schemas.model_source import ModelSource
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.weight_files import files_digest, stored_tensors
from logitcask_services.teachers.merging import write_merged

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
RECORD: Final = "merged.json"
"""What a merged folder was made of, and the digest of its weights."""
_NAME_DIGITS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter, as peft writes them."""

    folder: Path
    config: dict[str, Any]
    digest: str
    """Of its two files, see `files_digest`."""

    @classmethod
    def open(cls, folder: Path) -> "Adapter":
        """Check the folder. Raises ModelError where it is no LoRA adapter, or its weights are no safetensors."""
        if not folder.is_dir():
            raise ModelError(f"the adapter {folder} is no folder; expected one with {CONFIG} and {WEIGHTS}")
        names = sorted(file.name for file in folder.iterdir())
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ModelError(
                    f"the adapter {folder} has no {name} (found {', '.join(names[:8]) or 'nothing'}); other formats, "
                    "such as .bin, are never loaded: save it again with peft's save_pretrained"
                )
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{folder / CONFIG} is not JSON ({error}); fetch the adapter again") from error
        kind = config.get("peft_type") if isinstance(config, dict) else None
        if kind != "LORA":
            raise ModelError(f"the adapter {folder} is of peft_type {kind!r}; expected LORA")
        if not stored_tensors([folder / WEIGHTS]):
            raise ModelError(f"the adapter {folder} holds no tensors; fetch it again")
        return cls(folder=folder, config=config, digest=files_digest([folder / CONFIG, folder / WEIGHTS]))


def merged_teacher(base: ModelSource, adapter_folder: Path, merged_root: Path) -> ModelSource:
    """The base with the adapter in its weights: made where it is not there yet. It takes the model in float32.

    Args:
        base: the model that the adapter was trained on.
        adapter_folder: with `adapter_config.json` and `adapter_model.safetensors`.
        merged_root: folder of merged teachers, made where absent.

    Raises:
        ModelError: one of the two is damaged, the adapter is not this model's, or an earlier result was changed.
        MissingExtraError: peft is not installed.
    """
    model, adapter = ModelFolder.open(base), Adapter.open(adapter_folder)
    _require_base(model, adapter)
    if model.quantization is not None:
        raise ModelError(f"{model.path} is quantised ({model.quantization}); merge the adapter into whole weights")
    made_of = {"base": _folder_digest(model.path), "adapter": adapter.digest}
    target = merged_root / f"{made_of['base'][:_NAME_DIGITS]}-{made_of['adapter'][:_NAME_DIGITS]}"
    if not target.exists():
        if importlib.util.find_spec("peft") is None:
            raise MissingExtraError("logitcask serve", "adapters", "peft")
        _make(model, adapter, target, made_of)
    _require_whole(target, made_of)
    return ModelSource(folder=target, name=f"{base.name}+{adapter_folder.resolve().name}")


def _require_base(model: ModelFolder, adapter: Adapter) -> None:
    """Raise ModelError where the adapter names another repository of the Hub. A folder's name says nothing."""
    named = str(adapter.config.get("base_model_name_or_path") or "")
    ours_is_of_hub, theirs_is_of_hub = model.revision is not None, named.count("/") == 1 and named[0] not in "/.~"
    if ours_is_of_hub and theirs_is_of_hub and named != model.name:
        raise ModelError(
            f"the adapter {adapter.folder} is of {named}, and the model is {model.name}; name its own base"
        )


def _make(model: ModelFolder, adapter: Adapter, target: Path, made_of: dict[str, str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".making-*"):  # of a start that was killed; there is one service for a state folder
        shutil.rmtree(left)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        # In a process of its own, so that torch and the model leave the service's memory.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(write_merged, model, adapter.folder, making).result()
        record = {**made_of, "weights": ModelFolder.open(making).weights_digest}
        (making / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for file in (*making.iterdir(), making):
            _flush(file)
        making.rename(target)
        _flush(target.parent)
    except BrokenProcessPool as error:
        raise ModelError(
            f"merging {adapter.folder} into {model.path} was killed; it takes the whole model in float32: is there "
            "memory enough?"
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _require_whole(target: Path, made_of: dict[str, str]) -> None:
    """Raise ModelError where a merged folder is not what was published."""
    try:
        record = json.loads((target / RECORD).read_text(encoding="utf-8"))
        fault = None if record == {**made_of, "weights": ModelFolder.open(target).weights_digest} else "it was changed"
    except (OSError, ValueError, ModelError) as error:
        fault = str(error)
    if fault is not None:
        raise ModelError(f"the merged teacher {target} is damaged ({fault}); remove the folder, it will be made anew")


def _folder_digest(folder: Path) -> str:
    """Over all files of a folder: configuration and tokenizer are copied, too."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return hashlib.sha256(f"logitcask-folder-1\0{files_digest(files)}".encode()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
