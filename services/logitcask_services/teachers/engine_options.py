"""Whether options are vLLM's and free to be chosen, found out before anything is loaded and without importing vLLM."""

import ast
import importlib.util
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from pydantic import JsonValue

from logitcask_schemas.errors import MissingExtraError, ModelError, OptionError
from logitcask_services.engines.vllm.arguments import require_free


@cache
def engine_argument_names() -> frozenset[str]:
    """Names of the fields of vLLM's `EngineArgs`, read from its source: importing it takes long and much memory.

    Raises:
        MissingExtraError: vLLM is not installed here.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("logitcask serve", "teacher", "vllm")
    source = Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = [field.target for field in node.body if isinstance(field, ast.AnnAssign)]
            return frozenset(target.id for target in fields if isinstance(target, ast.Name))
    raise RuntimeError(f"{source} has no class EngineArgs: this vLLM is another than the one that was tested")


def require_engine_options(engine: str, options: Mapping[str, JsonValue], *, where: str) -> None:
    """Raise OptionError where an option is not vLLM's, or not the operator's to choose.

    Args:
        engine: of the teacher.
        options: the operator's.
        where: begins the message: which file and table, or which option of the command.
    """
    if not options:
        return
    if engine != "vllm":
        raise OptionError(
            f"{where}: {', '.join(sorted(options))} are options of vLLM, and the engine is {engine}; leave them out"
        )
    known = engine_argument_names()
    for name in sorted(options.keys() - known):
        raise OptionError(f"{where}: vLLM has no option {name!r}; {nearest(name, known)}")
    try:
        require_free(options)
    except ModelError as error:
        raise OptionError(f"{where}: {error}") from error


def nearest(name: str, known: Collection[str]) -> str:
    """What might have been meant, as the rest of a sentence."""
    close = get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    if not close:
        return f"expected one of {', '.join(sorted(known))}" if len(known) <= 16 else "see vLLM's `EngineArgs`"
    return f"did you mean {' or '.join(close)}?"
