"""The registry of weights: from a name with parameters to a weight."""

import json
import re
from dataclasses import fields, replace
from typing import Final, TypeVar, get_type_hints

from logitcask_consumer.weights.weight import Weight, WeightParameterError
from logitcask_schemas.errors import LogitcaskError

WEIGHTS: dict[str, type[Weight]] = {}
"""Every registered class by its name."""

W = TypeVar("W", bound=type[Weight])

_ARGUMENT: Final = re.compile(r'\s*(?P<key>[a-z_]+)=(?P<value>"(?:[^"\\]|\\.)*"|[^",]*[^",\s])\s*(?:,|$)')


class UnknownWeightError(LogitcaskError, KeyError):
    """A weight was named that is not registered."""

    def __str__(self) -> str:
        return str(self.args[0])


def register(weight: W) -> W:
    """Register a class of weights under its `name`; the first line of its docstring is its summary."""
    assert weight.name not in WEIGHTS, f"weight {weight.name} is registered twice"
    assert weight.__doc__, f"weight {weight.name} has no docstring"
    weight.summary = weight.__doc__.splitlines()[0]
    WEIGHTS[weight.name] = weight
    return weight


def get_weight(spec: str) -> Weight:
    r"""A weight by its name and parameters: `entropy_top:keep=0.2`, `completion_only:after="Answer:\n"`.

    Text between double quotes is read as in JSON, so `\n` is a line break and commas are part of it.

    Raises:
        UnknownWeightError: no such weight; the message lists those there are.
        WeightParameterError: it has no such parameter, or the value is not one it can have.
    """
    name, colon, rest = spec.strip().partition(":")
    if name not in WEIGHTS:
        raise UnknownWeightError(f"there is no weight {name!r}; there are: {', '.join(sorted(WEIGHTS))}")
    hints = get_type_hints(WEIGHTS[name])
    kinds = {f.name: hints[f.name] for f in fields(WEIGHTS[name]) if f.init and f.repr}
    given, at = dict[str, object](), 0
    while at < len(rest) or (colon and not at):
        found = _ARGUMENT.match(rest, at)
        if found is None or found["key"] not in kinds:
            known = ", ".join(kinds) or "none"
            raise WeightParameterError(
                f"weight {name!r} cannot read {rest[at:]!r}; its parameters are: {known}, given as name=value, text "
                'between double quotes (name="value")'
            )
        given[found["key"]] = _value(name, found["key"], found["value"], kinds[found["key"]])
        at = found.end()
    return replace(WEIGHTS[name](), **given)


def _value(name: str, key: str, text: str, kind: object) -> object:
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise WeightParameterError(f"weight {name!r}: {key} is a number, got {text!r}") from None
    assert kind is str, f"weight {name}: parameters are numbers or text, {key} is {kind}"
    if not text.startswith('"'):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise WeightParameterError(f"weight {name!r}: {key}={text} is no JSON text ({error})") from None
