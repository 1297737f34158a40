"""Losses as they are written: a name, perhaps with parameters, "js:beta=0.1,tail=ghost"."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar, get_type_hints

from logitcask_schemas.errors import LogitcaskError


class UnknownLossError(LogitcaskError, KeyError):
    """A loss was named that is not registered."""

    def __str__(self) -> str:
        return str(self.args[0])


class LossParameterError(LogitcaskError, ValueError):
    """A loss was given a parameter that it does not have or that is out of range."""


L = TypeVar("L")


def read_loss(text: str, known: Mapping[str, L], *, kind: str = "") -> L:
    """A loss by its name, or with parameters: "js:beta=0.1,tail=ghost".

    Args:
        text: what was written.
        known: the losses there are, by name, with their default parameters; dataclasses.
        kind: of the losses, for messages.

    Raises:
        UnknownLossError: no such loss; the message lists those there are.
        LossParameterError: it has no such parameter, or the value is not one it can have.
    """
    name, _, rest = text.strip().partition(":")
    if name not in known:
        raise UnknownLossError(f"there is no loss {name!r}{kind}; there are: {', '.join(sorted(known))}")
    loss: Any = known[name]
    given, hints = dict[str, object](), get_type_hints(type(loss))
    types = {field.name: hints[field.name] for field in fields(loss)}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in types:
            has = ", ".join(types) or "none"
            raise LossParameterError(f"loss {name!r} has no parameter {part!r}; it has: {has}, given as name=value")
        given[key] = _value(name, key, value, types[key])
    read: L = replace(loss, **given)
    return read


def write_loss(loss: Any) -> str:
    """A loss as `read_loss` reads it: its name and the parameters that differ from their defaults."""
    changed = [(f.name, getattr(loss, f.name)) for f in fields(loss) if getattr(loss, f.name) != f.default]
    given = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in changed]
    return f"{loss.name}:{','.join(given)}" if given else str(loss.name)


def _value(name: str, key: str, text: str, kind: object) -> object:
    choices = getattr(kind, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        if text not in choices:
            raise LossParameterError(f"loss {name!r}: {key} is one of {', '.join(choices)}, got {text!r}")
        return text
    assert kind in (int, float), f"loss {name}: parameters are numbers or choices, {key} is {kind}"
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        raise LossParameterError(f"loss {name!r}: {key} is a number, got {text!r}") from None
