"""`--config FILE`: options of a command from a YAML file, under their names; the command line goes before it."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Final

import typer

_NOT_OPTIONS: Final = ("config_file", "as_json")
"""Which file it is, and what is printed, are said on the command line only."""
_MERGE: Final = "tag:yaml.org,2002:merge"


def options_from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Options of a YAML file become the defaults of this call, so that those on the command line go before them.

    Keys are the options' names, with hyphens or underscores. A callback of typer.

    Raises:
        typer.BadParameter: the file cannot be read, or holds what is no option; names the nearest one.
    """
    if path is None:
        return None
    parameters = {
        _key(option): parameter
        for parameter in context.command.params
        if parameter.name not in _NOT_OPTIONS
        for option in parameter.opts
        if option.startswith("--")
    }
    options: dict[str, Any] = {}
    for key, node in _read_yaml(path):
        name = _key(key)
        if name not in parameters:
            raise typer.BadParameter(f"{path}: there is no option {key}{_nearest(name, list(parameters))}")
        parameter = parameters[name]
        nodes = node.value if node.id == "sequence" and parameter.multiple else [node]
        typed = [
            _typed(each, is_flag=bool(getattr(parameter, "is_flag", False)), where=f"{path}: {key}") for each in nodes
        ]
        options[str(parameter.name)] = typed if parameter.multiple else typed[0]
    context.default_map = options
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of these options; those on the command line go before it.",
        callback=options_from_file,
        is_eager=True,
    ),
]


def _key(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _nearest(name: str, names: list[str]) -> str:
    """The end of a message: the option that was meant, perhaps, and all there are."""
    close = difflib.get_close_matches(name, names, n=1)
    meant = f"; the nearest is {close[0].replace('_', '-')}" if close else ""
    listing = ", ".join(option.replace("_", "-") for option in sorted(names))
    return f"{meant}; there are: {listing}"


def _read_yaml(path: Path) -> list[tuple[str, Any]]:
    """Keys of the mapping that a file holds, with the nodes of their values.

    Raises:
        typer.BadParameter: it holds none, a key is no name, or stands there twice: YAML takes the last.
    """
    import yaml

    try:
        # As bytes: YAML is UTF-8, or UTF-16 with a mark, whatever the machine's locale is.
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise typer.BadParameter(f"{path} holds no options; write one a line, such as `seq-len: 1024`")
    for key, _ in root.value:
        if key.id != "scalar":
            raise typer.BadParameter(
                f"{path}: line {key.start_mark.line + 1}: expected the name of an option before `:`"
            )
        if key.tag == _MERGE:
            raise typer.BadParameter(
                f"{path}: line {key.start_mark.line + 1}: merge keys (<<) are not followed; write the options of the "
                "other mapping here, one a line"
            )
    pairs = [(str(key.value), value) for key, value in root.value]
    keys = [_key(key) for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise typer.BadParameter(f"{path}: {twice[0].replace('_', '-')} stands there twice")
    return pairs


def _typed(node: Any, *, is_flag: bool, where: str) -> str | bool:
    """A value as it would be typed on the command line: its own text, whatever YAML would make of it.

    2026 may be a folder's name, and 0100 is no octal number there.

    Args:
        node: of the value.
        is_flag: whether the option is one that is given or not.
        where: file and key.

    Raises:
        typer.BadParameter: it is no scalar, nothing, or true or false of an option that is no flag.
    """
    kind = node.tag.rpartition(":")[2]
    if node.id != "scalar" or kind == "null":
        what = "no value" if kind == "null" else {"seq": "a list", "map": "a mapping"}.get(kind, f"a {kind}")
        raise typer.BadParameter(f"{where}: expected a text, a number, true or false, got {what}")
    text = str(node.value)
    if kind == "bool":
        if not is_flag:
            raise typer.BadParameter(
                f"{where}: expected a text or a number, got {text}, which is true or false in YAML; write the number, "
                f"or the text in quotes: '{text}'"
            )
        return text.lower() in ("true", "yes", "on")
    if not text.strip():
        raise typer.BadParameter(f"{where}: is empty; leave the line out")
    return text
