"""Things as they are written: a name with parameters, `js:beta=0.1,tail=ghost`, or parameters alone, `rank=16,alpha=8`.

Parameters are the fields of a frozen dataclass: numbers, choices (`Literal`) or text. Text that holds a comma or a
double quote stands between double quotes and is read as in JSON.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import Field, fields, replace
from typing import Any, Final, TypeVar, get_type_hints

from logitcask_schemas.errors import LogitcaskError

T = TypeVar("T")

_ARGUMENT: Final = re.compile(r'\s*(?P<key>\w+)=(?P<value>"(?:[^"\\]|\\.)*"|[^",]*)\s*(?:,|$)')


def read_named(
    text: str,
    registry: Mapping[str, T],
    *,
    what: str,
    unknown: type[LogitcaskError],
    wrong: type[LogitcaskError],
    kind: str = "",
) -> T:
    r"""A thing by its name, or with parameters: `js:beta=0.1`, `completion_only:after="Answer:\n"`.

    Args:
        text: what was written.
        registry: the things there are, by name, with their default parameters.
        what: one of them is called, for messages.
        unknown: is raised where no such thing is there; the message lists those there are.
        wrong: is raised where it has no such parameter, or the value is not one it can have.
        kind: of the things, for messages.
    """
    name, colon, rest = text.strip().partition(":")
    if name not in registry:
        raise unknown(f"there is no {what} {name!r}{kind}; there are: {', '.join(sorted(registry))}")
    default: Any = registry[name]
    if not colon:
        return registry[name]
    named: T = replace(default, **read_parameters(rest, type(default), subject=f"{what} {name!r}", wrong=wrong))
    return named


def read_parameters(text: str, kind: type[Any], *, subject: str, wrong: type[LogitcaskError]) -> dict[str, Any]:
    """Parameters of a dataclass, `name=value` joined by commas, at least one.

    Args:
        text: what was written.
        kind: the dataclass.
        subject: whose parameters these are, for messages.
        wrong: is raised where there is no such parameter, one stands there twice, or the value is none it can have.
    """
    hints = get_type_hints(kind)
    types = {field.name: hints[field.name] for field in _parameters(kind)}
    values, at = dict[str, Any](), 0
    while at < len(text) or not at:
        argument = _ARGUMENT.match(text, at)
        if argument is None or argument["key"] not in types:
            quoted = ', text between double quotes (name="value")' if str in types.values() else ""
            raise wrong(
                f"{subject} cannot read {text[at:]!r}; its parameters are: {', '.join(types) or 'none'}, given as "
                f"name=value{quoted}"
            )
        key = argument["key"]
        if key in values:
            raise wrong(f"{subject}: {key} stands there twice")
        values[key] = _value(f"{subject}: {key}", argument["value"].rstrip(), types[key], wrong)
        at = argument.end()
    return values


def write_named(name: str, instance: Any) -> str:
    """An instance as `read_named` reads it: its name and the parameters that differ from their defaults."""
    hints = get_type_hints(type(instance))
    changed = [
        (f.name, getattr(instance, f.name)) for f in _parameters(instance) if getattr(instance, f.name) != f.default
    ]
    written = [f"{key}={_text(value, hints[key])}" for key, value in changed]
    return f"{name}:{','.join(written)}" if written else name


def _parameters(instance: Any) -> list[Field[Any]]:
    """Fields that are written; others are what an instance was bound to."""
    return [field for field in fields(instance) if field.init and field.repr]


def _text(value: object, kind: object) -> str:
    if kind is str:
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(subject: str, text: str, kind: object, wrong: type[LogitcaskError]) -> object:
    choices = getattr(kind, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        if text not in choices:
            raise wrong(f"{subject} is one of {', '.join(choices)}, got {text!r}")
        return text
    if kind is str:
        if not text.startswith('"'):
            return text
        try:
            return json.loads(text)
        except ValueError as error:
            raise wrong(f"{subject}={text} is no JSON text ({error})") from None
    assert kind in (int, float), f"{subject}: parameters are numbers, choices or text, not {kind}"
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        raise wrong(f"{subject} is a {'whole ' if kind is int else ''}number, got {text!r}") from None
