"""One door to every engine and generator."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logitcask_schemas.errors import MissingExtraError, ModelError
from logitcask_schemas.model_source import ModelSource, find_model
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.engine import Engine
from logitcask_services.engines.generator import Generator
from logitcask_services.engines.hint_shape import HintShape, resolve_hints
from logitcask_services.engines.model_folder import ModelFolder

if TYPE_CHECKING:
    from logitcask_services.engines.openai.options import RemoteOptions

EngineKind = Literal["vllm", "transformers", "openai"]


def load_engine(
    kind: EngineKind,
    model: Path | ModelSource,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    options: dict[str, Any] | None = None,
    hints: HintSpec | None = None,
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
        hints: whose layers the engine is to give, see `Engine.gives_hints`; negative numbers count from the end.

    Returns:
        The engine; close it when done.

    Raises:
        ModelError: the folder is not a model, or the engine cannot serve it, or give such hints.
        CaptureSpecError: the teacher has not the layers of the hints.
        MissingExtraError: the engine is not installed here.
    """
    if kind == "openai":
        source, remote = _remote(model, dtype, options or {})
        from logitcask_services.engines.openai.engine import RemoteEngine

        if hints is not None:
            resolve_hints(CaptureSpec(hints=hints), None)
        return RemoteEngine(source, remote, max_model_len=max_model_len)
    folder = _open(kind, model)
    if hints is not None:
        hints = resolve_hints(CaptureSpec(hints=hints), HintShape.of_config(folder.config)).hints
    if kind == "vllm":
        from logitcask_services.engines.vllm.engine import VllmEngine

        return VllmEngine(folder, dtype=dtype, max_model_len=max_model_len, options=options or {}, hints=hints)
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
        kind: "vllm", "openai" for one that is served elsewhere, or "transformers" for the reference.
        model: folder in the Hugging Face layout, or a repository of the Hub, see `find_model`.
        dtype: "auto", "float32", "bfloat16" or "float16".
        max_model_len: most tokens of a prompt with what is written after it; None: what the model was made for, but
            4096 at most where vLLM runs on a CPU.
        options: further keyword arguments: vLLM's `EngineArgs`, those of `TransformersGenerator`, or of
            `RemoteOptions`.

    Returns:
        The generator; close it when done. Its identity is that of the engine which `load_engine` gives for the same
        arguments.

    Raises:
        ModelError: the folder is not a model, or the engine cannot serve it.
        MissingExtraError: the engine is not installed here.
    """
    if kind == "openai":
        source, remote = _remote(model, dtype, options or {})
        from logitcask_services.engines.openai.generator import RemoteGenerator

        return RemoteGenerator(source, remote, max_model_len=max_model_len)
    folder = _open(kind, model)
    if kind == "vllm":
        from logitcask_services.engines.vllm.generator import VllmGenerator

        return VllmGenerator(folder, dtype=dtype, max_model_len=max_model_len, options=options or {})
    from logitcask_services.engines.transformers_generator import TransformersGenerator

    return TransformersGenerator(folder, dtype=dtype, max_model_len=max_model_len, **(options or {}))


def _open(kind: EngineKind, model: Path | ModelSource) -> ModelFolder:
    if kind not in ("vllm", "transformers"):
        raise ModelError(f"there is no engine {kind!r}; choose vllm, transformers or openai")
    folder = ModelFolder.open(model)
    if importlib.util.find_spec(kind) is None:
        raise MissingExtraError("logitcask serve", "teacher", kind)
    if (package := folder.missing_package) is not None:
        raise ModelError(
            f"{folder.path} holds weights of {package}, which is not installed here: install it beside {kind} (pip "
            f"install {package}), or take the model without its quantisation"
        )
    return folder


def _remote(model: Path | ModelSource, dtype: str, options: dict[str, Any]) -> "tuple[ModelSource, RemoteOptions]":
    from logitcask_services.engines.openai.options import RemoteOptions

    if "url" not in options:
        raise ModelError("the engine openai needs to know where the teacher is served; name it with --remote-url")
    if dtype != "auto":
        raise ModelError(f"the dtype of a teacher that is served elsewhere is not ours to choose; leave {dtype} out")
    source = find_model(model, weights=False) if isinstance(model, Path) else model
    return source, RemoteOptions(**options)
