"""What the engine's process loads: a function of this module, or another one, by its name, with a JSON document."""

import importlib
from pathlib import Path
from typing import Any

from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.engine import Engine
from logitcask_services.engines.factory import load_engine, load_generator
from logitcask_services.engines.generator import Generator


def load_part(loader: str, document: dict[str, Any]) -> Engine | Generator:
    """Call a loader, given as `module:function`. It is named by the service's code, never by a request."""
    module, _, function = loader.partition(":")
    part: Engine | Generator = getattr(importlib.import_module(module), function)(document)
    return part


def engine_of(document: dict[str, Any]) -> Engine:
    """`load_engine` of what `arguments_of` wrote."""
    hints = document.pop("hints")
    return load_engine(**_read(document), hints=None if hints is None else HintSpec.model_validate(hints))


def generator_of(document: dict[str, Any]) -> Generator:
    """`load_generator` of what `arguments_of` wrote."""
    return load_generator(**_read(document))


def arguments_of(source: ModelSource, **arguments: Any) -> dict[str, Any]:
    """Arguments of `load_engine`, or of `load_generator`, as a JSON document."""
    folder = str(source.folder.absolute())
    return {"model": {"folder": folder, "name": source.name, "revision": source.revision}, **arguments}


def _read(document: dict[str, Any]) -> dict[str, Any]:
    model = document.pop("model")
    return {"model": ModelSource(**{**model, "folder": Path(model["folder"])}), **document}
