"""Options of `logitcask serve`, one for each setting of the service, so that none can be forgotten.

A setting with a docstring is an option with this help. Two settings are secrets, and have none: whoever lists the
processes of the machine would read them.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import typer

from logitcask_services.cli.request_options import values
from logitcask_services.settings import ServiceSettings

SECRETS: Final = frozenset({"api_key", "remote_key"})
SINGULAR: Final = {"allowed_origins": "allowed_origin", "engine_options": "engine_option"}
"""Names of options that may be repeated, where they are not those of their settings."""
PANELS: Final = (
    ("engines", "Many engines"),
    ("executor", "Many engines"),
    ("ray_", "Many engines"),
    ("gpus_", "Many engines"),
    ("cpus_", "Many engines"),
    ("remote_", "A teacher that is served elsewhere"),
    ("score_", "Scoring now"),
    ("max_", "Limits"),
    ("retain_", "Limits"),
    ("upload_", "Limits"),
    ("disk_", "Limits"),
    ("engine_", "The engine at work"),
    ("chunk_", "The engine at work"),
    ("cancel_", "The engine at work"),
    ("load_", "The engine at work"),
    ("pause_", "The engine at work"),
    ("keepalive_", "The engine at work"),
)
"""Where in the help options stand whose settings begin so; all others come first."""
FIRST: Final = frozenset({"engine_options", "max_model_len"})
"""Of these, those that stand with the first all the same."""


def parameters() -> list[inspect.Parameter]:
    """One keyword parameter for each setting but the secrets, as Typer reads them."""
    return [
        inspect.Parameter(
            SINGULAR.get(name, name),
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _type_of(field.annotation), typer.Option(help=field.description, rich_help_panel=_panel(name))
            ],
        )
        for name, field in ServiceSettings.model_fields.items()
        if name not in SECRETS
    ]


def settings_given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that options say, by name; those that were not given are left to the environment.

    Raises BadParameter where `--engine-option` is not KEY=VALUE.
    """
    given = dict[str, Any]()
    for name in ServiceSettings.model_fields.keys() - SECRETS:
        value = options[SINGULAR.get(name, name)]
        if value is None or value == []:  # of one that may be repeated
            continue
        if name == "engine_options":
            value = values(value, "--engine-option")
        given[name] = tuple(value) if isinstance(value, list) else value
    return given


def option_of(setting: str) -> str:
    """How an option is written on the command line."""
    return "--" + SINGULAR.get(setting, setting).replace("_", "-")


def _panel(name: str) -> str | None:
    return None if name in FIRST else next((panel for prefix, panel in PANELS if name.startswith(prefix)), None)


def _type_of(annotation: Any) -> Any:
    """What Typer shall read: numbers, paths and flags as such; all else as text, which the settings judge."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [each for each in get_args(annotation) if each is not NoneType]
        annotation = kinds[0] if len(kinds) == 1 else str
    origin = get_origin(annotation)
    if origin in (tuple, dict):
        return list[str] | None
    if origin is Annotated:
        annotation = get_args(annotation)[0]
    if origin is Literal or annotation not in (bool, int, float, Path):
        return str | None
    return annotation | None
