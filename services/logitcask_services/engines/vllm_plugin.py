"""vLLM general plugin: for every architecture vLLM knows, registers its capturing variant under a name of its own.

vLLM calls `register` in each process it starts (entry point group `vllm.general_plugins`), possibly more than once.
The original names stay as they are, so an environment with this plugin still serves models the ordinary way.
"""

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

    from logitcask_services.engines import vllm_wrapper

    known = [name for name in ModelRegistry.get_supported_archs() if not name.startswith(PREFIX)]
    for architecture in known:
        ModelRegistry.register_model(PREFIX + architecture, f"{vllm_wrapper.__name__}:{PREFIX}{architecture}")
        # Adjustments that vLLM makes to the configuration of certain architectures go by name.
        if architecture in MODELS_CONFIG_MAP:
            MODELS_CONFIG_MAP[PREFIX + architecture] = MODELS_CONFIG_MAP[architecture]
