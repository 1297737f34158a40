"""Turn a GGUF file into an ordinary Hugging Face folder with float32 weights and no quantisation config."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from logitcask_schemas.errors import ModelError


def convert_gguf(gguf: Path, target: Path, *, name: str) -> None:
    """Write config.json, model.safetensors (float32), generation config and tokenizer to `target`.

    transformers de-quantises while loading but leaves the GGUF quantisation in the configuration, with which neither
    it nor vLLM would load the saved weights: they go into a fresh model of the same architecture instead.

    Args:
        gguf: the file; its architecture must be one that transformers reads from GGUF.
        target: folder to create.
        name: what `config.json` calls the model.

    Raises:
        ModelError: the file is not a GGUF that transformers can read.
    """
    auto_model: Any = AutoModelForCausalLM  # its classmethods carry no types
    folder = str(gguf.parent)
    try:
        loaded = auto_model.from_pretrained(
            folder, gguf_file=gguf.name, trust_remote_code=False, local_files_only=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, gguf_file=gguf.name, trust_remote_code=False, local_files_only=True
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"transformers cannot read {gguf.name} as a GGUF causal language model: {error}") from error
    fields = loaded.config.to_dict()
    fields.pop("quantization_config", None)
    fields["_name_or_path"] = name
    config = AutoConfig.for_model(**fields)
    model = auto_model.from_config(config, dtype=torch.float32, trust_remote_code=False)
    # Tied weights appear in both state dicts under both names, so nothing may be missing or left over.
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.generation_config = loaded.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for file in target.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which a service under another user could not read
