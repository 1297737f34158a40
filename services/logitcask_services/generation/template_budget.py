"""How much a template may do each time it is rendered: work, turns of loops, sizes of what it makes."""

from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

LONGEST_TEXT: Final = 1_000_000
"""Characters of a text that a template writes, or of one that it makes on the way."""
MOST_TURNS: Final = 20_000
"""Of all loops of a template together, each time it is rendered."""
MOST_WORK: Final = 50_000_000
"""Characters and items that filters and operators may read or write each time a template is rendered."""
_WORK: Final = "__work"
"""Name of the budget among a template's variables; no template can say it."""


@dataclass(slots=True)
class Work:
    """What a template may still do."""

    turns: int = MOST_TURNS
    units: int = MOST_WORK

    def spend(self, units: int) -> None:
        """Take work off. Raises SecurityError where none is left."""
        self.units -= units
        if self.units < 0:
            raise SecurityError(f"its filters and operators handle more than {MOST_WORK} characters; make it simpler")

    def variables(self) -> dict[str, Any]:
        """To be given to a template beside its own variables."""
        return {_WORK: self}


def work_of(context: Context) -> Work:
    """What the template that is rendered may still do. Raises SecurityError where nothing was said of that."""
    work = context.resolve(_WORK)
    if not isinstance(work, Work):
        raise SecurityError("a template is rendered without a budget")
    return work


def size_of(value: object) -> int:
    """Characters and items of a JSON value, with those within one another, as often as they stand there; at least 1.

    Counting ends above `LONGEST_TEXT`: a list may hold the same list many times, so that its text is without bound.
    """
    size, rest = 0, [value]
    while rest and size <= LONGEST_TEXT:
        inner = rest.pop()
        size += max(1, len(inner)) if isinstance(inner, str) else 1
        if isinstance(inner, list | tuple | dict):
            rest.extend(islice(inner.values() if isinstance(inner, dict) else inner, LONGEST_TEXT))
    return size


def require_short(size: int) -> None:
    """Raise SecurityError where something is larger than a text may be."""
    if size > LONGEST_TEXT:
        raise SecurityError(f"it makes a text or list of {size} characters or items; at most {LONGEST_TEXT}")
