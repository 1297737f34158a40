"""What commands that make requests share: capture specs, names with values, idempotency keys, `run` left out."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import typer
from pydantic import JsonValue
from typer.core import TyperGroup

from logitcask_schemas.api.requests import NAME_RULE, is_cask_name
from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.capture_spec import capture_spec
from logitcask_schemas.record.hint_spec import parse_hints
from logitcask_schemas.terminal import printable

RUN: Final = "run"


def specified(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were specified: all that is not None."""
    return {name: value for name, value in options.items() if value is not None}


def capture_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a capture spec, as given. Raises BadParameter where they make none, before anything is sent."""
    capture = specified(options)
    try:
        capture_spec(**capture)
    except CaptureSpecError as error:
        raise typer.BadParameter(str(error)) from error
    return capture


def spec_of(entries: Sequence[str] | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """What `--capture name=value` and options of their own (None: not given) say of a capture, together.

    Raises BadParameter where both say the same field.
    """
    listed, options = values(entries, "--capture"), specified(own)
    if twice := sorted(listed.keys() & options.keys()):
        raise typer.BadParameter(f"{twice[0]} is given twice: here, and by its own option", param_hint="--capture")
    return {**listed, **options}


def hints_of(text: str | None) -> dict[str, Any] | None:
    """The fields of hints as they were written, see `parse_hints`. Raises BadParameter."""
    if text is None:
        return None
    try:
        return parse_hints(text).model_dump(mode="json")
    except CaptureSpecError as error:
        raise typer.BadParameter(str(error), param_hint="--hints") from error


def pairs(entries: Sequence[str] | None, option: str) -> dict[str, str]:
    """`name=value` of an option that may be repeated. Raises BadParameter."""
    found = dict[str, str]()
    for entry in entries or []:
        name, separator, value = entry.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{entry!r}: expected key=value", param_hint=option)
        found[name] = value
    return found


def values(entries: Sequence[str] | None, option: str) -> dict[str, JsonValue]:
    """`name=value` where the value is JSON, or a text where it is none. Raises BadParameter."""
    return {name: _value(text) for name, text in pairs(entries, option).items()}


def _value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value


def require_cask_name(cask: str | None) -> None:
    """Raise BadParameter where a cask was named that cannot be."""
    if cask is not None and not is_cask_name(cask):
        raise typer.BadParameter(printable(f"{cask!r}: expected a name, not a path; {NAME_RULE}"), param_hint="--cask")


def require_key(idempotency_key: str | None) -> None:
    """Raise BadParameter where the key cannot be sent."""
    if idempotency_key is not None and not (idempotency_key.isascii() and idempotency_key.isprintable()):
        raise typer.BadParameter("expected printable ASCII characters", param_hint="--idempotency-key")


class CorpusOrCommand(TyperGroup):
    """What begins with no command's name is a corpus, or an option of `run`: `run` may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See the class."""
        return super().parse_args(ctx, args if args[:1] == ["--help"] else self.with_command(args))

    def with_command(self, words: list[str]) -> list[str]:
        """The words with the command that they leave out."""
        return [RUN, *words] if words and words[0] not in self.commands else words
