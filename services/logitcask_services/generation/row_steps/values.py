"""When two JSON values are the same answer."""

import json
from collections.abc import Hashable

from logitcask_services.generation.numbers import as_number


def canonical_text(text: str) -> str:
    """A text without case, and with single spaces."""
    return " ".join(text.casefold().split())


def canonical(value: object) -> Hashable:
    """Equal for values that are the same answer: numbers as numbers ("12.0" is 12), texts without case and spaces.

    Lists are compared item by item, objects as JSON.
    """
    if (number := as_number(value)) is not None:
        return number
    match value:
        case str():
            return canonical_text(value)
        case list() | tuple():
            return ("list", *(canonical(item) for item in value))
        case dict():
            return ("object", json.dumps(value, sort_keys=True))
        case bool() | None:
            # Not the numbers 0 and 1, which Python takes for equal.
            return ("constant", value)
        case _:
            return ("other", repr(value))
