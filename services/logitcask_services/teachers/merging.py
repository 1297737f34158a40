"""Merges a LoRA adapter into a model, and proves that the sum says what model and adapter say together."""

import shutil
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import require_all_weights
from logitcask_services.engines.model_config import CONFIG_NAME
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.weight_files import SINGLE_NAME, stored_tensors, weight_files

_PROBE_TOKENS: Final = 32
_TOLERANCE: Final = 1e-3
"""Of the largest logit: float32 sums in another order."""


def write_merged(model: ModelFolder, adapter: Path, target: Path) -> None:
    """Write the merged model into an empty folder: weights in the model's dtype, all else as the model has it.

    Args:
        model: the base.
        adapter: folder of the adapter, as peft writes them.
        target: where to.

    Raises:
        ModelError: the adapter does not fit the model, has weights that are no numbers, or cannot be merged so that
            the logits stay.
    """
    import peft
    import torch
    import transformers

    auto_model: Any = transformers.AutoModelForCausalLM
    base, info = auto_model.from_pretrained(
        model.path,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    require_all_weights(model.path, info["missing_keys"])
    base.eval()
    if type(base).__name__ != model.architecture:
        raise ModelError(
            f"{model.path} is a {model.architecture}, of which only {type(base).__name__} would be merged; an adapter "
            "needs a plain causal language model"
        )
    probe_1L = torch.arange(min(_PROBE_TOKENS, base.get_input_embeddings().num_embeddings))[None]
    try:
        adapted: Any = peft.PeftModel.from_pretrained(base, str(adapter), low_cpu_mem_usage=False)
        _require_all_used(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False), adapter)
        with torch.inference_mode():
            expected = adapted(input_ids=probe_1L).logits
        merged = adapted.merge_and_unload(safe_merge=True)
    except ModelError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError) as error:  # whatever peft says of what does not fit
        raise ModelError(
            f"the adapter {adapter} does not fit {model.path}: {' '.join(str(error).split())[:600]}"
        ) from error
    with torch.inference_mode():
        off = float((merged(input_ids=probe_1L).logits - expected).abs().max() / expected.abs().max())
    if not off < _TOLERANCE:
        raise ModelError(
            f"the adapter {adapter} cannot be merged into {model.path}: the merged model's logits are off by {off:.1e} "
            "of the largest (weights that two layers share, and one of them adapted?)"
        )
    dtype = getattr(torch, model.checkpoint_dtype or "float32")
    merged.to(dtype).save_pretrained(target)
    for file in model.path.iterdir():
        # save_pretrained's own configuration may say the same in other fields.
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".safetensors.index.json"):
            shutil.copyfile(file, target / file.name)
    _require_same_tensors(model, target)


def _require_all_used(loaded: dict[str, Any], adapter: Path) -> None:
    """Raise ModelError where the model did not take each of the adapter's tensors, or takes others, too."""
    stored = {tensor.name: tensor.shape for tensor in stored_tensors([adapter / "adapter_model.safetensors"])}
    taken = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    if stored != taken:
        differing = sorted({name for name, _ in stored.items() ^ taken.items()})
        raise ModelError(
            f"the adapter {adapter} is not this model's: {len(differing)} tensors are in one and not, or in another "
            f"shape, in the other, such as {differing[0]}"
        )


def _require_same_tensors(model: ModelFolder, target: Path) -> None:
    """Raise ModelError where the merged model has other tensors than the base."""
    assert (target / CONFIG_NAME).is_file()
    base, merged = (
        {(tensor.name, tensor.shape) for tensor in stored_tensors(files)}
        for files in (model.weight_files, weight_files(target))
    )
    if base != merged:
        name, _ = min(base ^ merged)
        raise ModelError(
            f"{model.path} cannot be merged with an adapter: the tensors of its files would be others, such as {name}; "
            f"save it again with save_pretrained (one {SINGLE_NAME}, or several with an index)"
        )
