"""Models and tokenizers of folders, and models of a config alone; no code of a folder is run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from logitcask_consumer.run_document import CHECKPOINTS_NAME, RUN_NAME, latest_checkpoint
from logitcask_consumer.student.adapters import ADAPTER_NAME, base_folder, holds_adapters_alone, merged, with_adapters
from logitcask_consumer.student.layer_proof import FAILURES, first_line
from logitcask_consumer.student.quantization import require_unquantized
from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import require_all_weights
from logitcask_schemas.record.identity import tokenizer_fingerprint

_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def require_model_folder(folder: Path, *, what: str) -> Path:
    """The folder itself, after proving that it holds a model's config, or that of adapters.

    Raises:
        ModelError: it does not exist, holds no config.json, or belongs to a run that has not finished.
    """
    if not (folder / "config.json").is_file() and not (folder / ADAPTER_NAME).is_file():
        raise ModelError(_what_is_missing(folder, what, "config.json", "a Hugging Face model folder"))
    return folder


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """A causal LM from a folder, or adapters with their base; safetensors only, no code from the folder is run.

    Raises:
        ModelError: transformers cannot load it as a causal LM, weights are missing or damaged, or the base of adapters
            is not there.
    """
    require_model_folder(folder, what="model")
    if (folder / "config.json").is_file():
        return _loaded(folder, dtype)
    base = base_folder(folder)
    return with_adapters(_loaded(base, dtype), folder)


def load_whole(folder: Path, *, what: str) -> Any:
    """As `load_model` in float32, adapters merged into their base, to be trained or cut to a student.

    Args:
        folder: of a model, or of adapters.
        what: it is to be, for messages.

    Raises:
        AdapterError: the adapters would change more than their layers.
        ModelError: as `load_model`; or the base of adapters is quantised.
    """
    if not holds_adapters_alone(folder):
        return load_model(folder)
    base = base_folder(folder)
    require_unquantized(base, what=f"base of the {what}")
    return merged(_loaded(base, torch.float32), folder, asked=f"the {what} {folder}")


def _loaded(folder: Path, dtype: torch.dtype) -> Any:
    """A causal LM of a folder with a config.json."""
    from transformers import AutoModelForCausalLM

    from logitcask_consumer.student.sharded_state import has_shards, load_student

    if has_shards(folder):
        model = model_of_config(folder / "config.json", seed=0)
        load_student(model, folder)
        return model.to(dtype).eval()
    auto: Any = AutoModelForCausalLM
    try:
        model, info = auto.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, *FAILURES) as error:
        raise ModelError(
            f"{folder} cannot be loaded as a causal LM with safetensors weights: {first_line(error)}"
        ) from error
    require_all_weights(folder, info["missing_keys"])
    return model


def folder_with_tokenizer(folders: Sequence[Path], fingerprint: str) -> Path | None:
    """The first of some model folders whose tokenizer has a fingerprint; None where none has.

    Raises:
        ModelError: a folder holds no tokenizer that can be loaded.
    """
    return next((folder for folder in folders if tokenizer_fingerprint(load_tokenizer(folder)) == fingerprint), None)


def load_config(folder: Path) -> Any:
    """The config of a folder. Raises ModelError where there is none that transformers can read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, *FAILURES) as error:
        raise ModelError(f"{folder} holds no config.json of a causal LM: {first_line(error)}") from error


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        ModelError: there is none that transformers can load, or the folder belongs to a run that has not finished.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(_what_is_missing(folder, "tokenizer", _TOKENIZER_FILES[0], "a folder with a tokenizer"))
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust backend raises bare Exception on a damaged file
        raise ModelError(f"{folder} holds no tokenizer that can be loaded: {first_line(error)}") from error


def _what_is_missing(folder: Path, what: str, file: str, needed: str) -> str:
    """One line: what a folder lacks, and what to do."""
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        return f"{what} folder {folder} {state}; {needed} is needed"
    if (folder / RUN_NAME).is_file():
        checkpoint = latest_checkpoint(folder)
        instead = f", or name its latest checkpoint {checkpoint}" if checkpoint else ""
        return (
            f"no {file} in {folder}: the run is unfinished. Give the `logitcask train` command that began it again, "
            f"which continues it{instead}"
        )
    inside = latest_checkpoint(folder.parent) if folder.name == CHECKPOINTS_NAME else None
    instead = f", such as {inside}" if inside else ""
    return f"{what} folder {folder} has no {file}; {needed} is needed{instead}"


def model_of_config(path: Path, seed: int) -> Any:
    """A freshly initialised model of the architecture in a config.json.

    Raises:
        ModelError: transformers knows no causal LM of it.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        torch.manual_seed(seed)
        return fresh_model(config)
    except (OSError, *FAILURES) as error:
        raise ModelError(
            f"{path} does not describe a causal LM that transformers knows: {first_line(error)}"
        ) from error


def fresh_model(config: Any) -> Any:
    """A causal LM with fresh float32 weights, of torch's generator.

    Args:
        config: of transformers.
    """
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
