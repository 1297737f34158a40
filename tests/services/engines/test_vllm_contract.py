"""Everything of vLLM that the engine relies on: where an upgrade changes it, a sentence says what, and who needs it.

The oldest vLLM that is supported is the `>=` of the extra `teacher` in pyproject.toml; the installed one is tested.
"""

import dataclasses
import importlib
import inspect
import warnings
from typing import Any

import pytest

pytest.importorskip("vllm")

POOLER, ENGINE, PLUGIN = "the capturing pooler", "the engine", "the plugin"
GENERATOR, RUNNER_V2, HINTS = "the generator", "the pooler under Model Runner V2", "hints"


@dataclasses.dataclass(frozen=True)
class Reliance:
    """One object of vLLM, and what must be true of it."""

    module: str
    name: str
    user: str
    parameters: tuple[str, ...] = ()
    """Of the function, or of the class's `__init__`: those that are given by name or by place."""
    members: tuple[str, ...] = ()
    """Methods, properties and fields that are used."""
    only: bool = False
    """No other parameter may be required, since the caller gives these alone."""


RELIANCES = [
    Reliance(
        "vllm", "EngineArgs", ENGINE, ("model", "runner", "dtype", "max_model_len", "hf_overrides", "load_format")
    ),
    Reliance("vllm", "EngineArgs", ENGINE, ("additional_config", "enable_prefix_caching", "skip_tokenizer_init")),
    Reliance("vllm", "EngineArgs", ENGINE, ("logprobs_mode", "disable_log_stats", "enforce_eager")),
    Reliance("vllm", "EngineArgs", ENGINE, ("served_model_name",)),
    Reliance("vllm", "EngineArgs", ENGINE, ("max_num_batched_tokens", "kv_cache_memory_bytes", "trust_remote_code")),
    Reliance("vllm", "EngineArgs", ENGINE, ("enable_chunked_prefill",), ("create_model_config",)),
    Reliance("vllm.v1.engine.llm_engine", "LLMEngine.from_engine_args", ENGINE, ("engine_args",), only=True),
    Reliance(
        "vllm.v1.engine.llm_engine", "LLMEngine.add_request", ENGINE, ("request_id", "prompt", "params"), only=True
    ),
    Reliance("vllm.v1.engine.llm_engine", "LLMEngine.step", ENGINE, only=True),
    Reliance("vllm.v1.engine.llm_engine", "LLMEngine.abort_request", ENGINE, ("request_ids",), only=True),
    Reliance("vllm.v1.engine.core_client", "EngineCoreClient.shutdown", ENGINE, ("timeout",), only=True),
    Reliance("vllm.v1.engine.core_client", "BackgroundResources", ENGINE, (), ("engine_dead", "engine_manager")),
    Reliance("vllm.v1.engine.exceptions", "EngineDeadError", ENGINE),
    Reliance("vllm.inputs", "tokens_input", ENGINE, ("prompt_token_ids",), only=True),
    Reliance("vllm", "PoolingParams", ENGINE, ("task", "skip_reading_prefix_cache", "extra_kwargs")),
    Reliance("vllm", "PoolingParams", POOLER, (), ("requires_token_ids",)),
    Reliance("vllm.config", "VllmConfig", ENGINE, (), ("model_config", "scheduler_config", "cache_config")),
    Reliance("vllm.config", "VllmConfig", PLUGIN, (), ("additional_config",)),
    Reliance("vllm.config", "ModelConfig", PLUGIN, (), ("get_hidden_size", "get_vocab_size", "max_model_len", "dtype")),
    Reliance("vllm.config", "SchedulerConfig", ENGINE, (), ("max_num_batched_tokens", "max_num_seqs")),
    Reliance("vllm.config", "CacheConfig", ENGINE, (), ("block_size",)),
    Reliance("vllm.platforms", "current_platform", ENGINE, (), ("is_cpu", "supported_dtypes")),
    Reliance("vllm", "ModelRegistry", PLUGIN, (), ("register_model", "get_supported_archs", "models")),
    Reliance("vllm.model_executor.models.config", "MODELS_CONFIG_MAP", PLUGIN),
    Reliance("vllm.model_executor.layers.pooler.abstract", "Pooler", POOLER, (), ("forward",)),
    Reliance("vllm.model_executor.layers.pooler.abstract", "Pooler.get_supported_tasks", POOLER, only=True),
    Reliance("vllm.model_executor.layers.pooler.abstract", "Pooler.get_pooling_updates", POOLER, ("task",), only=True),
    Reliance("vllm.model_executor.layers.pooler.abstract", "Pooler.forward", POOLER, (), ()),
    Reliance("vllm.model_executor.layers.pooler.common", "PoolingParamsUpdate", POOLER, ("requires_token_ids",)),
    Reliance("vllm.v1.pool.metadata", "PoolingMetadata", POOLER, (), ("pooling_params", "pooling_states")),
    Reliance("vllm.v1.pool.metadata", "PoolingMetadata.get_pooling_cursor", POOLER, only=True),
    Reliance("vllm.v1.pool.metadata", "PoolingMetadata.get_prompt_token_ids_cpu", POOLER, only=True),
    Reliance("vllm.v1.pool.metadata", "PoolingCursor", POOLER, (), ("num_scheduled_tokens_cpu", "seq_lens_cpu")),
    Reliance("vllm.v1.pool.metadata", "PoolingCursor.get_finished_mask", POOLER, only=True),
    Reliance("vllm.v1.pool.metadata", "PoolingStates.clean", POOLER, only=True),
    Reliance("vllm.v1.worker.gpu.pool.pooling_runner", "PoolingRunner", RUNNER_V2, ("model", "vllm_config"), only=True),
    Reliance(
        "vllm.v1.worker.gpu.pool.pooling_runner",
        "PoolingRunner.pool",
        RUNNER_V2,
        ("hidden_states", "input_batch", "req_states"),
        only=True,
    ),
    Reliance(
        "vllm.v1.worker.gpu.input_batch",
        "InputBatch",
        RUNNER_V2,
        ("req_ids", "num_reqs", "idx_mapping_np", "num_scheduled_tokens", "num_tokens", "query_start_loc"),
        ("seq_lens_cpu_upper_bound",),
    ),
    Reliance("vllm", "SamplingParams", GENERATOR, ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens")),
    Reliance("vllm", "SamplingParams", GENERATOR, ("min_tokens", "stop_token_ids", "logprobs", "flat_logprobs")),
    Reliance("vllm", "SamplingParams", GENERATOR, ("prompt_logprobs", "logprob_token_ids", "detokenize", "skip_clone")),
    Reliance("vllm.sampling_params", "RequestOutputKind", GENERATOR, (), ("DELTA", "FINAL_ONLY")),
    Reliance("vllm.distributed", "get_tensor_model_parallel_world_size", HINTS, only=True),
    Reliance("vllm.distributed", "tensor_model_parallel_all_gather", HINTS, ("input_", "dim"), only=True),
    Reliance("vllm.model_executor.models.llama", "LlamaForCausalLM", HINTS, (), ("set_aux_hidden_state_layers",)),
    Reliance("vllm.model_executor.models.llama", "LlamaForCausalLM", PLUGIN, ("vllm_config", "prefix"), ("forward",)),
    Reliance("vllm.model_executor.models.llama", "LlamaForCausalLM", PLUGIN, (), ("compute_logits", "supports_eagle3")),
]


def what_changed(reliance: Reliance, version: str) -> list[str]:
    """A sentence for each thing that is no longer so."""
    place = f"{reliance.module}.{reliance.name}"
    needed = f"which {reliance.user} needs (logitcask_services.engines.vllm)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
            found: Any = importlib.import_module(reliance.module)
        for part in reliance.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        return [f"vLLM {version} has no {place}, {needed}: {error}"]
    sentences = []
    known = inspect.signature(found).parameters if callable(found) else {}
    for name in reliance.parameters:
        if name not in known:
            sentences.append(f"vLLM {version}: {place} takes no parameter {name!r}, {needed}; it takes {list(known)}")
    fields = {field.name for field in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else set()
    for name in reliance.members:
        if name not in fields and not hasattr(found, name) and name not in getattr(found, "__annotations__", {}):
            sentences.append(f"vLLM {version}: {place} has no {name!r}, {needed}")
    if reliance.only:
        required = {
            name
            for name, parameter in known.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        for name in sorted(required - {"self", "cls", *reliance.parameters}):
            sentences.append(f"vLLM {version}: {place} now requires {name!r}, which {reliance.user} does not give")
    return sentences


@pytest.mark.parametrize("reliance", RELIANCES, ids=lambda reliance: f"{reliance.name} for {reliance.user}")
def test_what_is_relied_on_is_there(reliance):
    import vllm

    sentences = what_changed(reliance, vllm.__version__)
    assert not sentences, "\n".join(sentences)


def test_the_supported_vllm_is_the_tested_one():
    import vllm

    assert tuple(map(int, vllm.__version__.split(".")[:2])) >= (0, 32), (
        "older than pyproject.toml's extra `teacher` allows"
    )


@pytest.mark.parametrize(
    ("reliance", "sentence"),
    [
        (Reliance("vllm.nowhere", "Thing", POOLER), "has no vllm.nowhere.Thing, which the capturing pooler needs"),
        (Reliance("vllm", "NoSuchThing", ENGINE), "has no vllm.NoSuchThing, which the engine needs"),
        (Reliance("vllm.inputs", "tokens_input", ENGINE, ("words",)), "tokens_input takes no parameter 'words'"),
        (Reliance("vllm.inputs", "tokens_input", ENGINE, only=True), "now requires 'prompt_token_ids'"),
        (Reliance("vllm.v1.pool.metadata", "PoolingCursor", POOLER, (), ("rows",)), "PoolingCursor has no 'rows'"),
    ],
)
def test_a_change_is_told_in_a_sentence(reliance, sentence):
    [told] = what_changed(reliance, "9.9")
    assert told.startswith("vLLM 9.9")
    assert sentence in told


def test_the_pooler_is_called_with_hidden_states_and_metadata():
    """V1 calls it by name, V2 by place: both must fit."""
    from vllm.model_executor.layers.pooler.abstract import Pooler

    from logitcask_services.engines.vllm.pooler import CapturePooler

    assert list(inspect.signature(CapturePooler.forward).parameters) == ["self", "hidden_states", "pooling_metadata"]
    assert list(inspect.signature(Pooler.forward).parameters)[:3] == ["self", "hidden_states", "pooling_metadata"]
