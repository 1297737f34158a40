"""One door to every engine and generator."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

from logitcask_schemas.errors import MissingExtraError, ModelError
from logitcask_schemas.model_source import ModelSource
from logitcask_services.engines.engine import Engine
from logitcask_services.engines.generator import Generator
from logitcask_services.engines.model_folder import ModelFolder

EngineKind = Literal["vllm", "transformers"]


def load_engine(
    kind: EngineKind,
    model: Path | ModelSource,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    options: dict[str, Any] | None = None,
) -> Engine:
    """Load a teacher.

    Args:
        kind: "vllm", or "transformers" for the reference engine.
        model: folder in the Hugging Face layout, or a repository of the Hub, see `find_model`.
        dtype: "auto", "float32", "bfloat16" or "float16".
        max_model_len: most tokens of a document; None: what the model was made for.
        options: further keyword arguments: vLLM's `EngineArgs`, or those of `TransformersEngine`.

    Returns:
        The engine; close it when done.

    Raises:
        ModelError: the folder is not a model, or the engine cannot serve it.
        MissingExtraError: the engine is not installed here.
    """
    folder = _open(kind, model)
    if kind == "vllm":
        from logitcask_services.engines.vllm.engine import VllmEngine

        return VllmEngine(folder, dtype=dtype, max_model_len=max_model_len, options=options or {})
    from logitcask_services.engines.transformers_engine import TransformersEngine

    return TransformersEngine(folder, dtype=dtype, max_model_len=max_model_len, **(options or {}))


def load_generator(
    kind: EngineKind,
    model: Path | ModelSource,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    options: dict[str, Any] | None = None,
) -> Generator:
    """Load a teacher that writes.

    Args:
        kind: "vllm", or "transformers" for the reference.
        model: folder in the Hugging Face layout, or a repository of the Hub, see `find_model`.
        dtype: "auto", "float32", "bfloat16" or "float16".
        max_model_len: most tokens of a prompt with what is written after it; None: what the model was made for, but
            4096 at most where vLLM runs on a CPU.
        options: further keyword arguments: vLLM's `EngineArgs`, or those of `TransformersGenerator`.

    Returns:
        The generator; close it when done. Its identity is that of the engine which `load_engine` gives for the same
        arguments.

    Raises:
        ModelError: the folder is not a model, or the engine cannot serve it.
        MissingExtraError: the engine is not installed here.
    """
    folder = _open(kind, model)
    if kind == "vllm":
        from logitcask_services.engines.vllm.generator import VllmGenerator

        return VllmGenerator(folder, dtype=dtype, max_model_len=max_model_len, options=options or {})
    from logitcask_services.engines.transformers_generator import TransformersGenerator

    return TransformersGenerator(folder, dtype=dtype, max_model_len=max_model_len, **(options or {}))


def _open(kind: EngineKind, model: Path | ModelSource) -> ModelFolder:
    if kind not in ("vllm", "transformers"):
        raise ModelError(f"there is no engine {kind!r}; choose vllm or transformers")
    folder = ModelFolder.open(model)
    if importlib.util.find_spec(kind) is None:
        raise MissingExtraError("logitcask serve", "teacher", kind)
    return folder
