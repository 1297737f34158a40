"""A teacher in transformers: what capturing and writing have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import require_all_weights
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.attention import declared_implementation, prove_attention
from logitcask_services.engines.dtypes import Platform, choose_dtype
from logitcask_services.engines.model_config import rope_types
from logitcask_services.engines.model_folder import ModelFolder

_UNBOUNDED = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersModel:
    """A model that is loaded."""

    model: Any
    device: torch.device
    max_model_len: int
    identity: TeacherIdentity
    length_matters: bool
    """Whether its rotary embeddings change with the longest row that is read (longrope, dynamic scaling)."""

    @classmethod
    def load(
        cls, folder: ModelFolder, *, dtype: str, max_model_len: int | None, device: str | None
    ) -> "TransformersModel":
        """Load it, and prove its attention.

        Args:
            folder: the teacher.
            dtype: compute dtype, or "auto": float32 on a CPU, the checkpoint's elsewhere.
            max_model_len: most tokens of a text; None: what the configuration declares.
            device: torch device; None: an accelerator where there is one, else the CPU.

        Raises:
            ModelError: the folder's model is no causal language model that transformers can load.
        """
        accelerator = torch.accelerator.current_accelerator()
        chosen = torch.device(device or (accelerator if accelerator is not None else "cpu"))
        platform = Platform(accelerator=chosen.type != "cpu", bfloat16=chosen.type != "cpu")
        torch_dtype = getattr(torch, choose_dtype(dtype, folder.checkpoint_dtype, platform))
        model = _load(folder, torch_dtype).eval().requires_grad_(False).to(chosen)
        declared = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _UNBOUNDED
        if max_model_len is not None and max_model_len > declared:
            raise ModelError(f"max_model_len {max_model_len} exceeds the {declared} positions that {folder.path} has")
        longest = max_model_len or declared
        prove_attention(model, name=folder.path.name, max_length=longest)
        return cls(
            model=model,
            device=chosen,
            max_model_len=longest,
            length_matters=bool(rope_types(folder.numeric_fields) & {"longrope", "dynamic"}),
            identity=folder.identity(
                dtype=str(model.dtype).removeprefix("torch."),
                vocab_size=model.get_output_embeddings().weight.shape[0],
                engine="transformers",
                engine_version=transformers.__version__,
            ),
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """None of transformers' bars: a command tells of its steps itself, and a log takes none."""
    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _load(folder: ModelFolder, dtype: torch.dtype) -> Any:
    """The model with an attention that fits its configuration, from safetensors, without running the folder's code."""
    auto_config: Any = transformers.AutoConfig
    auto_model: Any = transformers.AutoModelForCausalLM
    try:
        config = auto_config.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
        with _no_bars():
            model, info = auto_model.from_pretrained(
                folder.path,
                config=config,
                dtype=dtype,
                attn_implementation=declared_implementation(config),
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (ValueError, OSError, ImportError, SafetensorError) as error:  # ImportError: what reads quantised weights
        raise ModelError(f"transformers cannot load {folder.path} as a causal language model: {error}") from error
    require_all_weights(folder.path, info["missing_keys"])
    return model
