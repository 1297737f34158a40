"""Which fields of a model's configuration can change its numbers, in a form that two spellings of one model share.

The configuration class of the architecture fills in defaults and settles spellings (`rope_scaling` or
`rope_parameters`). What equals the class's default is then left out: a configuration saved with every default written
out equals the one without, and a later transformers that knows more fields finds nothing new.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

CONFIG_NAME: Final = "config.json"
_QUANTIZATION_FILES: Final = ("hf_quant_config.json", "quantize_config.json")
"""Where some quantisers keep what others write into config.json."""

_NO_NUMBERS: Final = frozenset(
    # Names and versions of things; the compute dtype is a member of the identity by itself.
    {"transformers_version", "dtype", "torch_dtype", "auto_map", "tokenizer_class", "task_specific_params", "prefix"}
    | {"problem_type", "id2label", "label2id", "num_labels", "finetuning_task", "custom_pipelines"}
    # What a forward pass returns, and how it is run.
    | {"use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "torchscript"}
    | {"gradient_checkpointing", "chunk_size_feed_forward", "attn_implementation", "pretraining_tp", "pruned_heads"}
    # Special tokens: a forward pass is given ids. Padding is a case of its own, below.
    | {"bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id", "unk_token_id"}
    # Training and initialisation.
    | {"initializer_range", "initializer_factor", "rescale_prenorm_residual", "router_aux_loss_coef", "z_loss_coef"}
    | {
        "attention_dropout",
        "hidden_dropout",
        "embd_pdrop",
        "resid_pdrop",
        "attn_pdrop",
        "dropout",
        "activation_dropout",
    }
    | {"layerdrop", "summary_first_dropout", "classifier_dropout", "router_jitter_noise", "input_jitter_noise"}
    # Generation, which older models kept here.
    | {"do_sample", "max_length", "min_length", "max_new_tokens", "num_beams", "num_beam_groups", "typical_p", "top_p"}
    | {"repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"}
    | {"num_return_sequences", "early_stopping", "diversity_penalty", "output_scores", "remove_invalid_values"}
    | {"suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"}
    | {"return_dict_in_generate", "exponential_decay_length_penalty"}
)
"""Fields that change no number of a forward pass over given ids. Everything else is compared."""

_LENGTHS: Final = frozenset({"max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"})
"""How many positions: a bound, unless the rotary embedding is computed from it."""
_ROPE_WITHOUT_LENGTH: Final = frozenset({"default", "linear", "llama3", "proportional"})
"""Rotary embeddings that the number of positions does not enter."""
_POSITIONS_FROM_PADDING: Final = (
    "roberta",
    "camembert",
    "xglm",
    "xmod",
    "data2vec",
    "fsmt",
    "speech_to_text",
    "m2m_100",
)
"""Families that count positions from the padding id."""


def numeric_fields(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Fields that can change numbers, as dotted path -> JSON value, defaults of the class left out.

    Args:
        folder: the model's.
        config: its config.json, used as it stands where transformers does not know the model's type.

    Returns:
        Sorted by path, always with `model_type` and `architectures`. Numbers that JSON has no words for are strings.
    """
    fields, defaults = _spelled_out(folder, config)
    mine, default = _flat(fields), _flat(defaults)
    kept = {path: mine.get(path) for path in mine.keys() | default.keys() if _differs(mine, default, path)}
    kept = {path: value for path, value in kept.items() if not _ignored(path, mine)}
    kept |= {"model_type": config.get("model_type"), "architectures": config["architectures"][:1]}
    for name in _QUANTIZATION_FILES:
        if (folder / name).is_file():
            kept |= _flat(json.loads((folder / name).read_text(encoding="utf-8")), name.removesuffix(".json"))
    return dict(sorted(kept.items()))


def rope_types(fields: Mapping[str, Any]) -> set[str]:
    """Types of the rotary embeddings in a configuration's fields, as dotted path -> value."""
    return {str(value) for path, value in fields.items() if _last(path) == "rope_type" and value is not None}


def _spelled_out(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration as its class sees it, and the class's defaults; the file itself where there is no class."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError, AttributeError, StrictDataclassError):
        # A type that transformers does not know (engines have their own), or values its class refuses. The engine will
        # say so if it cannot use them either; for the identity the file is as good.
        return config, {}
    try:
        defaults = type(loaded)().to_dict()
    except (ValueError, KeyError, TypeError, AttributeError):
        defaults = {}  # a class without defaults: every field counts
    return loaded.to_dict(), defaults


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        parts = [_flat(inner, f"{path}.{name}" if path else str(name)) for name, inner in value.items()]
        return {name: inner for part in parts for name, inner in part.items()}
    return {path: _as_json(value)}


def _as_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # cask.json holds JSON, and JSON has no infinity
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _differs(mine: Mapping[str, Any], default: Mapping[str, Any], path: str) -> bool:
    return mine.get(path) != default.get(path)


def _ignored(path: str, fields: Mapping[str, Any]) -> bool:
    name = _last(path)
    if any(part.startswith("_") or part in ("id2label", "label2id") for part in path.split(".")):
        return True
    if name in _LENGTHS:
        return rope_types(fields) <= _ROPE_WITHOUT_LENGTH
    if name == "pad_token_id":
        return not str(fields.get("model_type", "")).startswith(_POSITIONS_FROM_PADDING)
    return name in _NO_NUMBERS or path.split(".")[0] in _NO_NUMBERS


def _last(path: str) -> str:
    return path.rpartition(".")[2]
