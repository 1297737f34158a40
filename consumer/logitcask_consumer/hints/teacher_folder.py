"""What training reads of the teacher's folder: its shape, and the one matrix of its head. The teacher is never loaded.

Shape legend: V ids of the teacher, D width of its hidden states.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from logitcask_consumer.head import LMHead, LogitTransform
from logitcask_consumer.student.adapters import base_folder, holds_adapters_alone
from logitcask_consumer.student.layer_proof import FAILURES, first_line
from logitcask_consumer.student.layer_states import widths_of
from logitcask_consumer.student.loading import load_config
from logitcask_schemas.errors import ModelError

_INDEX: Final = "model.safetensors.index.json"
_WEIGHTS: Final = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherShape:
    """The teacher by its config.json."""

    folder: Path
    blocks: int
    """N."""
    hidden: int
    """D."""
    parts: tuple[int, int, int]
    """Numbers of a query, a key and a value vector, heads end to end."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a config.json, of adapters that of their base; no code from the folder is run.

        Raises:
            ModelError: it describes no causal LM, or the base is not there.
        """
        text = load_config(base_folder(folder) if holds_adapters_alone(folder) else folder).get_text_config()
        return cls(
            folder=folder, blocks=int(text.num_hidden_layers), hidden=int(text.hidden_size), parts=widths_of(text)
        )


def read_head(folder: Path, *, vocab_size: int) -> LMHead:
    """The head of a teacher, of float32: its matrix, a bias where it has one, and what it does to logits.

    The model is built without memory for its weights, to learn the name of the matrix; that tensor alone is read.

    Args:
        folder: the teacher's, with safetensors.
        vocab_size: width of its logits by the cask's identity, V.

    Raises:
        ModelError: the folder holds no such tensor, or the head is of another width.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    try:
        with torch.device("meta"):
            auto: Any = AutoModelForCausalLM
            model = auto.from_config(config, trust_remote_code=False)
        layer = model.get_output_embeddings()
        names = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
        inputs = [name for name, m in model.named_modules() if m is model.get_input_embeddings()]
    except FAILURES as error:
        raise ModelError(f"{folder}: its head cannot be told: {first_line(error)}") from error
    if not names or not isinstance(layer, torch.nn.Linear):
        raise ModelError(f"{folder}: {type(model).__name__} has no linear head, which --target dense and ted need")
    tied = inputs if getattr(config.get_text_config(), "tie_word_embeddings", False) else []
    files = _tensor_files(folder)
    weight = next((f"{name}.weight" for name in (*names, *tied) if f"{name}.weight" in files), None)
    if weight is None:
        raise ModelError(
            f"{folder} holds no tensor {names[0]}.weight, the teacher's head, in its safetensors: name the folder that "
            "the cask was captured from"
        )
    weight_VD = _tensor(files[weight], weight)
    if weight_VD.shape[0] != vocab_size:
        raise ModelError(
            f"{folder}: its head has {weight_VD.shape[0]:,} ids, the cask's teacher {vocab_size:,}: name the folder of "
            "the cask's teacher (--teacher)"
        )
    bias = f"{names[0]}.bias"
    return LMHead(
        weight_VD=weight_VD,
        bias_V=_tensor(files[bias], bias) if layer.bias is not None and bias in files else None,
        transform=LogitTransform.from_config(config),
    )


def _tensor_files(folder: Path) -> dict[str, Path]:
    """File of each tensor."""
    try:
        if (folder / _INDEX).is_file():
            names: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
            return {name: folder / file for name, file in names.items()}
        with safe_open(folder / _WEIGHTS, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / _WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{folder}: no safetensors weights can be read: {first_line(error)}") from error


def _tensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name).to(torch.float32)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: tensor {name} cannot be read: {first_line(error)}") from error
    return tensor
