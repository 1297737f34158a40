"""One door to every engine."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

from logitcask_schemas.errors import MissingExtraError, ModelError
from logitcask_schemas.model_source import ModelSource, find_model
from logitcask_services.engines.engine import Engine
from logitcask_services.engines.model_folder import ModelFolder

EngineKind = Literal["vllm", "transformers", "openai"]


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
        kind: "vllm", "transformers" for the reference engine, or "openai" for a teacher that is served elsewhere.
        model: folder in the Hugging Face layout, or a repository of the Hub, see `find_model`; of "openai", one with
            the tokenizer.
        dtype: "auto", "float32", "bfloat16" or "float16".
        max_model_len: most tokens of a document; None: what the model was made for.
        options: further keyword arguments: vLLM's `EngineArgs`, those of `TransformersEngine`, or for "openai" those
            of `RemoteOptions`, of which `url` is needed.

    Returns:
        The engine; close it when done.

    Raises:
        ModelError: the folder is not a model, or the engine cannot serve it.
        MissingExtraError: the engine is not installed here.
    """
    if kind not in ("vllm", "transformers", "openai"):
        raise ModelError(f"there is no engine {kind!r}; choose vllm, transformers or openai")
    if kind == "openai":
        return _load_remote(model, dtype, max_model_len, options or {})
    folder = ModelFolder.open(model)
    if importlib.util.find_spec(kind) is None:
        raise MissingExtraError("logitcask serve", "teacher", kind)
    if kind == "vllm":
        from logitcask_services.engines.vllm.engine import VllmEngine

        return VllmEngine(folder, dtype=dtype, max_model_len=max_model_len, options=options or {})
    from logitcask_services.engines.transformers_engine import TransformersEngine

    return TransformersEngine(folder, dtype=dtype, max_model_len=max_model_len, **(options or {}))


def _load_remote(model: Path | ModelSource, dtype: str, max_model_len: int | None, options: dict[str, Any]) -> Engine:
    from logitcask_services.engines.openai.engine import RemoteEngine
    from logitcask_services.engines.openai.options import RemoteOptions

    if "url" not in options:
        raise ModelError("the engine openai needs to know where the teacher is served; name it with --remote-url")
    if dtype != "auto":
        raise ModelError(f"the dtype of a teacher that is served elsewhere is not ours to choose; leave {dtype} out")
    source = find_model(model, weights=False) if isinstance(model, Path) else model
    return RemoteEngine(source, RemoteOptions(**options), max_model_len=max_model_len)
