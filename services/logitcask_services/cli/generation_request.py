"""The request that the options of `logitcask generate` make."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import JsonValue

from logitcask_schemas.terminal import printable
from logitcask_services.cli.request_options import specified, values
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.recipe_files import read_text, strict_yaml


def steps_of(path: Path) -> dict[str, JsonValue]:
    """`steps` and `emit` of a file in YAML or JSON. Raises BadParameter where it holds anything else."""
    try:
        content = strict_yaml(read_text(path, str(path)), str(path))
    except RecipeError as error:
        raise _refuse(str(error), "--steps") from error
    if not isinstance(content, dict) or content.keys() != {"steps", "emit"}:
        got = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise _refuse(f"{path}: expected a mapping with `steps` and `emit`, got {got or 'nothing'}", "--steps")
    return content


def parameters_of(pairs: Sequence[str] | None, shortcuts: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Parameters of a recipe: those of `-p`, and those that have an option. Raises BadParameter where both say one."""
    parameters, by_option = values(pairs, "-p"), specified(shortcuts)
    if twice := sorted(parameters.keys() & by_option.keys()):
        raise _refuse(f"{twice[0]} is given twice: by its own option, and with -p", "-p")
    return {**parameters, **by_option}


def extraction_of(
    cask: str | None, capture: Mapping[str, Any], max_length: int | None, *, no_capture: bool
) -> dict[str, Any] | None:
    """The extraction that follows; None where there is to be none. Raises BadParameter where options contradict."""
    if cask is None or no_capture:
        if cask is not None:
            raise _refuse("goes with a cask to be made; leave --cask or --no-capture out", "--no-capture")
        if capture or max_length is not None:
            raise _refuse("missing; options of the capture go with it", "--cask")
        return None
    return {"cask": cask, "capture": dict(capture), **specified({"max_length": max_length})}


def _refuse(message: str, option: str) -> typer.BadParameter:
    return typer.BadParameter(printable(message), param_hint=option)
