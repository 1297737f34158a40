"""Starting vLLM, and ending it: what capturing and writing have in common."""

import os
from typing import Any

from logitcask_schemas.errors import ModelError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.dtypes import Platform, choose_dtype
from logitcask_services.engines.engine import EngineError
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.metrics import EngineMetrics, metrics_of_process
from logitcask_services.engines.model_config import rope_types
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.vllm.arguments import Runner, cpu_generating, numeric_options, vllm_arguments
from logitcask_services.engines.vllm.hint_layers import HintLayers, hook_defaults, require_class_gives
from logitcask_services.engines.vllm.watch import watch_engine_core

_CPU_CACHE_BYTES = 2 * 2**30
"""Key-value cache on a CPU unless told otherwise: prompts pass through once, so a few batches' worth is enough."""
CPU_STEP_TOKENS = 1024
"""Tokens of one step on a CPU, some seconds of work: results, and the end of a cancelled job, come at that pace."""
_SHUTDOWN_SECONDS = 6.0


class RunningVllm:
    """vLLM's engine with the teacher in it, in processes of its own."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        runner: Runner,
        dtype: str,
        max_model_len: int | None,
        options: dict[str, Any],
        hints: HintSpec | None = None,
    ) -> None:
        """Start it; takes from half a minute to many, by the model's size.

        Args:
            folder: the teacher.
            runner: "pooling" to capture, "generate" to write.
            dtype: compute dtype, or "auto": the checkpoint's, see `choose_dtype`.
            max_model_len: most tokens of a document, or of a prompt with what is written; None: what the model was
                made for, but `arguments.CPU_LONGEST` at most where a CPU writes.
            options: further arguments of vLLM's `EngineArgs`, such as tensor_parallel_size.
            hints: whose layers the engine gives from now on; resolved.

        Raises:
            ModelError: vLLM does not know the architecture or refuses the configuration, the model does not give such
                hints, or an option is not the caller's to choose.
            EngineError: the engine's process ended while it started.
        """
        # Set before vLLM reads them. A service has threads, and forking a process with threads can deadlock.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is a command's own: `--json`
        from vllm import EngineArgs, ModelRegistry, __version__
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        from logitcask_services.engines.vllm.plugin import register

        register()
        self.hint_shape = HintShape.of_config(folder.config)
        if folder.architecture not in ModelRegistry.get_supported_archs():
            raise ModelError(
                f"{folder.path} is a {folder.architecture}, which this vLLM ({__version__}) does not know; "
                "use the transformers engine for it"
            )
        defaults = {**platform_defaults(current_platform), **hook_defaults(hints)}
        self.hints: HintLayers | None = None
        if hints is not None and self.hint_shape is not None:
            self.hints = HintLayers(of=hints.of, layers=hints.layers, num_blocks=self.hint_shape.num_blocks)
            eager = bool({**defaults, **options}.get("enforce_eager"))
            require_class_gives(ModelRegistry.models[folder.architecture].load_model_cls(), hints, eager=eager)
        arguments = vllm_arguments(
            folder,
            runner=runner,
            dtype=choose_dtype(dtype, folder.checkpoint_dtype, platform_of(current_platform)),
            max_model_len=max_model_len,
            options=options,
            defaults=defaults,
            additional_config=None if self.hints is None else self.hints.as_config(),
        )
        try:
            if runner == "generate" and current_platform.is_cpu():
                declared = EngineArgs(**arguments).create_model_config().max_model_len
                arguments |= cpu_generating(options, asked=max_model_len, declared=declared, step=CPU_STEP_TOKENS)
            self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except (TypeError, ValueError) as error:
            raise ModelError(f"vLLM cannot serve {folder.path} as asked: {error}") from error
        except RuntimeError as error:
            raise EngineError(
                f"vLLM's engine process for {folder.path} did not start: {error} Its log above says why; "
                "too little memory for weights and cache is the usual cause."
            ) from error
        config = self.engine.vllm_config
        self.max_model_len: int = config.model_config.max_model_len
        self._watch_ended = watch_engine_core(self.engine.engine_core)
        self._closed = False
        self.identity = folder.identity(
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            vocab_size=config.model_config.get_vocab_size(),
            engine="vllm",
            engine_version=__version__,
            engine_options=numeric_options(
                options, rope=rope_types(folder.numeric_fields), longest=self.max_model_len, config=folder.config
            ),
        )

    def interrupt(self) -> bool:
        """Kill the processes of the engine core; see `Engine.interrupt`."""
        manager = getattr(getattr(self.engine.engine_core, "resources", None), "engine_manager", None)
        processes = [process for process in getattr(manager, "processes", ()) if process.pid is not None]
        for process in processes:
            process.kill()
        return bool(processes)

    def own_metrics(self) -> EngineMetrics | None:
        """What vLLM keeps of itself (`vllm:...`); None where it runs without statistics."""
        return metrics_of_process("vllm:") if self.engine.log_stats else None

    def close(self) -> None:
        """End the engine's processes. Idempotent."""
        if not self._closed:
            self._closed = True
            self._watch_ended.set()
            core = self.engine.engine_core
            core.shutdown(timeout=_SHUTDOWN_SECONDS)
            context = getattr(core, "ctx", None)  # absent where the core runs in this process
            if context is not None:
                context.term()  # vLLM closes its sockets and leaves the ZeroMQ context behind


def platform_defaults(current_platform: Any) -> dict[str, Any]:
    """Arguments for CPUs: no compilation (slow to start, no gain here), a bounded cache. None for accelerators."""
    if not current_platform.is_cpu():
        return {}
    defaults: dict[str, Any] = {"enforce_eager": True, "max_num_batched_tokens": CPU_STEP_TOKENS}
    if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        defaults["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    return defaults


def platform_of(current_platform: Any) -> Platform:
    """What the choice of a dtype depends on, as vLLM sees the machine."""
    import torch

    if current_platform.is_cpu():
        fast = bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())
        return Platform(accelerator=False, bfloat16=fast)
    return Platform(accelerator=True, bfloat16=torch.bfloat16 in current_platform.supported_dtypes)
