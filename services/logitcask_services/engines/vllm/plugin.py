"""Capturing variants of vLLM's causal language models: the same model, run as a pooling model that returns records.

`LogitcaskLlamaForCausalLM` and its like are attributes of this module that come into being when asked for. Each
subclasses the architecture that vLLM's registry resolves, so weights, parallelism, tied embeddings and soft-capped or
scaled logits stay the model's own business; only a pooler is added.
"""

from typing import Any

from logitcask_schemas.errors import ModelError


def capturing_class(base: type[Any], name: str) -> type[Any]:
    """A subclass of a vLLM causal language model with the capturing pooler.

    Raises:
        ModelError: the class computes no logits, so there is nothing to capture.
    """
    from logitcask_services.engines.vllm.hint_layers import HintLayers, give_hints
    from logitcask_services.engines.vllm.pooler import CapturePooler

    if not hasattr(base, "compute_logits"):
        raise ModelError(f"{base.__name__} is no causal language model (it has no compute_logits); nothing to capture")

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:
        base.__init__(self, vllm_config=vllm_config, prefix=prefix)
        # vLLM calls the pooler on every rank of the last pipeline stage, with the hidden states of scheduled tokens.
        hints = HintLayers.of_config(vllm_config.additional_config)
        self.pooler = CapturePooler(
            self.compute_logits, hints=hints, hidden_width=vllm_config.model_config.get_hidden_size()
        )
        if hints is not None:
            give_hints(self, hints)

    body = {
        "__module__": __name__,
        "__init__": __init__,
        "is_pooling_model": True,
        # Chunked prefill is allowed for these poolings; the pooler puts the chunks together.
        "default_seq_pooling_type": "LAST",
        "default_tok_pooling_type": "ALL",
        "attn_type": _attention_type(base),
        "score_type": "bi-encoder",
    }
    return type(name, (base,), body)


def _attention_type(base: type[Any]) -> str:
    if getattr(base, "is_hybrid", False):
        return "hybrid"
    return "attention_free" if getattr(base, "is_attention_free", False) else "decoder"


def __getattr__(name: str) -> type[Any]:
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm import ModelRegistry

    architecture = name.removeprefix(PREFIX)
    if architecture not in ModelRegistry.models:
        raise AttributeError(f"vLLM knows no architecture {architecture!r}")
    globals()[name] = capturing_class(ModelRegistry.models[architecture].load_model_cls(), name)
    result: type[Any] = globals()[name]
    return result


PREFIX = "Logitcask"


def capturing_architectures(architecture: str) -> list[str]:
    """The `architectures` that select the capturing variant of one.

    The original name follows, because vLLM asks of some models whether it is in the list; the first one is loaded.
    """
    return [PREFIX + architecture, architecture]


def register() -> None:
    """Register the capturing variants. Names only: a model's code is imported when an engine asks for it."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from logitcask_services.engines.vllm import plugin as vllm_wrapper

    architectures = [name for name in ModelRegistry.get_supported_archs() if not name.startswith(PREFIX)]
    for architecture in architectures:
        ModelRegistry.register_model(PREFIX + architecture, f"{vllm_wrapper.__name__}:{PREFIX}{architecture}")
        # Adjustments that vLLM makes to the configuration of certain architectures go by name.
        if architecture in MODELS_CONFIG_MAP:
            MODELS_CONFIG_MAP[PREFIX + architecture] = MODELS_CONFIG_MAP[architecture]
