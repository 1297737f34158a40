"""What vLLM is asked for: arguments that are logitcask's own, those of the caller, and which of them change numbers.

Imports no vLLM, so that the choice can be tested where it is not installed.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from logitcask_schemas.errors import ModelError
from logitcask_services.engines.model_folder import NO_GGUF, ModelFolder
from logitcask_services.engines.vllm.plugin import capturing_architectures

Runner = Literal["pooling", "generate"]

_OWN: Final = {
    "model": "the model folder is",
    "runner": "the engine captures or writes",
    "convert": "the engine captures or writes",
    "dtype": "there is an argument `dtype`",
    "max_model_len": "there is an argument `max_model_len`",
    "trust_remote_code": "code from a model folder never runs",
    "load_format": "weights are safetensors, which the identity covers",
    "model_weights": "the identity covers the folder's weights",
    "hf_config_path": "the identity covers the folder's config.json",
    "config_format": "the identity covers the folder's config.json",
    "logprobs_mode": "log-probabilities are the model's own, whatever a text was sampled with",
    "enable_lora": "an adapter is no part of the identity; merge it into the weights",
    "tokenizer": "the identity covers the folder's tokenizer",
    "revision": "the model folder is on this machine already",
    "pooler_config": "the capture has a pooler of its own",
    "worker_cls": "the capture is made in vLLM's own worker",
}
"""Arguments that a caller may not set, and why."""

_NO_NUMBERS: Final = frozenset(
    {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel", "nnodes"}
    | {"distributed_executor_backend", "max_parallel_loading_workers", "disable_custom_all_reduce", "device"}
    | {
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "block_size",
        "swap_space",
        "cpu_offload_gb",
        "num_gpu_blocks_override",
    }
    | {
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_num_partial_prefills",
        "enable_chunked_prefill",
        "async_scheduling",
    }
    | {
        "scheduling_policy",
        "long_prefill_token_threshold",
        "enable_prefix_caching",
        "enforce_eager",
        "compilation_config",
    }
    | {"seed", "skip_tokenizer_init", "tokenizer_mode", "disable_log_stats", "enable_log_requests", "download_dir"}
    | {
        "safetensors_load_strategy",
        "use_tqdm_on_load",
        "optimization_level",
        "served_model_name",
        "allowed_local_media_path",
    }
)
"""Arguments that change speed, memory or messages, numbers in their last bits at most. All others are compared."""

CPU_LONGEST: Final = 4096
"""Window of a CPU that writes, unless told otherwise. A step may hold it whole, and scores need all its logits at
once: twice 4 bytes for each token and each word of the vocabulary, 1.6 GB for 4096 tokens of 49,152 words."""


def vllm_arguments(
    folder: ModelFolder,
    *,
    dtype: str,
    max_model_len: int | None,
    options: dict[str, Any],
    defaults: dict[str, Any],
    runner: Runner = "pooling",
    additional_config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Keyword arguments for vLLM's `EngineArgs`.

    Args:
        folder: the teacher.
        dtype: compute dtype by name; never "auto", which vLLM would choose by rules of its own.
        max_model_len: most tokens of a document; None: what the model was made for.
        options: the caller's; `hf_overrides` are joined to logitcask's own.
        defaults: the platform's, which the caller's override.
        runner: "pooling" to capture, "generate" to write.
        additional_config: what our own classes in the engine's processes are told, joined to the caller's.

    Raises:
        ModelError: an option is not the caller's to choose.
    """
    require_free(options)
    overrides = options.get("hf_overrides") or {}
    if not isinstance(overrides, dict) or "architectures" in overrides:
        raise ModelError("the vLLM option 'hf_overrides' should be fields of config.json, without `architectures`")
    if runner == "pooling":
        overrides = {**overrides, "architectures": capturing_architectures(folder.architecture)}
    return {
        "skip_tokenizer_init": True,
        # For contexts that documents share, and prompts of several samples. A cached prefix has no hidden states to
        # capture: other requests skip it.
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "served_model_name": folder.name,  # in its metrics, where a path of this machine would stand
        **defaults,
        **options,
        "model": str(folder.path),
        "runner": runner,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "hf_overrides": overrides,
        "additional_config": {**(options.get("additional_config") or {}), **(additional_config or {})},
        "trust_remote_code": False,
        "load_format": "safetensors",
        "logprobs_mode": "raw_logprobs",
    }


def require_free(options: Mapping[str, Any]) -> None:
    """Raise ModelError where an option is not the caller's to choose."""
    for name in sorted(options.keys() & _OWN.keys()):
        raise ModelError(f"the vLLM option {name!r} cannot be set: {_OWN[name]}. Leave it out.")
    for name in sorted(name for name in options if name.startswith("data_parallel")):
        if (name, options[name]) != ("data_parallel_size", 1):
            raise ModelError(
                f"the vLLM option {name!r} cannot be set: vLLM's engine for one caller gives every document to the "
                "first of its data-parallel ranks, and the others would hold their GPUs for nothing. Use "
                "tensor_parallel_size, or serve the teacher once for each group of GPUs."
            )
    if str(options.get("quantization")).lower() == "gguf":
        raise ModelError(f"the vLLM option 'quantization' cannot be gguf: {NO_GGUF}")


def cpu_generating(options: dict[str, Any], *, asked: int | None, declared: int, step: int) -> dict[str, int | bool]:
    """Arguments without which a CPU cannot write with seeds, and the window that they are affordable for.

    vLLM's process ends when it cuts a prompt whose request has a seed into chunks (`torch.Generator` of a CPU has no
    offset). So prompts stay whole, and a step takes the longest.

    Args:
        options: the caller's. Their `max_num_batched_tokens` is raised to the window where it is below.
        asked: the caller's `max_model_len`.
        declared: what the model was made for.
        step: tokens of a step, unless the caller says otherwise.

    Raises:
        ModelError: the caller insists on chunks.
    """
    if options.get("enable_chunked_prefill"):
        raise ModelError(
            "the vLLM option 'enable_chunked_prefill' cannot be set where a CPU writes: chunks and seeds together end "
            "vLLM's process. Leave it out."
        )
    longest = asked or min(declared, CPU_LONGEST)
    return {
        "max_model_len": longest,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(longest, int(options.get("max_num_batched_tokens") or step)),
    }


def numeric_options(options: dict[str, Any], *, rope: set[str], longest: int, config: dict[str, Any]) -> dict[str, Any]:
    """The options that can change numbers, as JSON values, for the teacher's identity.

    Args:
        options: the caller's.
        rope: types of the model's rotary embeddings.
        longest: most tokens of a document, as the engine settled it.
        config: the model's config.json.

    Raises:
        ModelError: an option that counts cannot be written down.
    """
    counted = {name: value for name, value in sorted(options.items()) if name not in _NO_NUMBERS and value is not None}
    try:
        counted = dict(json.loads(json.dumps(counted, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ModelError(f"vLLM options {sorted(counted)} cannot be written as JSON ({error})") from error
    if "longrope" in rope:
        # vLLM takes the long factors for every document as soon as its context exceeds the original one.
        text = {**config, **(config.get("text_config") or {})}
        parameters = text.get("rope_parameters") or text.get("rope_scaling") or {}
        original = text.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings")
        long = original is None or longest > original
        counted["longrope_factors"] = "long" if long else "short"
    return counted
