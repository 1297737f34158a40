"""`--config FILE`: options of a command from a YAML file, under their names; the command line goes before it."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Final

import typer

_NOT_OPTIONS: Final = ("config_file", "as_json")
"""Which file it is, and what is printed, are said on the command line only."""


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
    for key, value in _read_yaml(path).items():
        name = _key(str(key))
        if name not in parameters:
            raise typer.BadParameter(f"{path}: there is no option {key}{_nearest(name, list(parameters))}")
        parameter = parameters[name]
        values = value if isinstance(value, list) and parameter.multiple else [value]
        plain = [_plain(each, where=f"{path}: {key}") for each in values]
        options[str(parameter.name)] = plain if parameter.multiple else plain[0]
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


def _read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping that a file holds. Raises BadParameter, also where a key stands there twice: YAML takes the last."""
    import yaml

    try:
        text = path.read_text()
        content, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path} holds no options; write one a line, such as `seq-len: 1024`")
    keys = [_key(str(key.value)) for key, _ in node.value]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise typer.BadParameter(f"{path}: {twice[0].replace('_', '-')} stands there twice")
    return content


def _plain(value: Any, *, where: str) -> str | bool:
    """A value as it would be typed on the command line: 2026 may be a folder's name. Raises BadParameter."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, (str, int, float)):
        what = "no value" if value is None else f"a {type(value).__name__}"
        raise typer.BadParameter(f"{where}: expected a text, a number, true or false, got {what}")
    text = repr(value) if isinstance(value, float) else str(value)
    if not text.strip():
        raise typer.BadParameter(f"{where}: is empty; leave the line out")
    return text
