"""The filters of prompt templates, each of which pays for what it reads and what it writes."""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final

from jinja2 import Undefined, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

from logitcask_services.generation.template_budget import LONGEST_TEXT, MOST_TURNS, require_short, size_of, work_of


def _replace(text: object, old: str, new: str) -> str:
    value = str(text)
    require_short(len(value) + (value.count(old) if old else len(value) + 1) * len(new))
    return value.replace(old, new)


def _join(values: Iterable[object], between: str = "") -> str:
    parts = [str(value) for value in values]
    require_short(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


def _tojson(value: object) -> str:
    if isinstance(value, Undefined):
        str(value)  # raises, and names what is missing
    return json.dumps(value, ensure_ascii=False)


def _round(value: float, digits: int = 0) -> float:
    return round(value, max(0, min(digits, 15)))


def _items(value: Mapping[str, object]) -> list[tuple[str, object]]:
    return list(value.items())


_OWN_FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "replace": _replace,
    "join": _join,
    "tojson": _tojson,
    "round": _round,
    "items": _items,
}
_JINJA_FILTERS: Final = (
    "abs", "capitalize", "count", "d", "default", "first", "float", "int", "last", "length", "list", "lower", "map",
    "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "string", "sum", "title", "trim",
    "unique", "upper", "wordcount",
)  # fmt: skip
FILTERS: Final = frozenset({*_JINJA_FILTERS, *_OWN_FILTERS})
"""Names of all filters that a template may use."""


def _counted_filter(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it reads and what it writes."""
    first = getattr(apply, "jinja_pass_arg", None)

    @pass_context
    def counted(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        work = work_of(context)
        work.spend(1 + size_of(value))
        given = {"context": (context,), "environment": (context.environment,), "eval_context": (context.eval_ctx,)}
        before = given[first.name] if first is not None else ()
        result = apply(*before, value, *args, **kwargs)
        if not isinstance(result, str | list | tuple | dict | int | float | Undefined | None):
            result = list(islice(result, LONGEST_TEXT + 1))  # `map` and its like give generators
        size = size_of(result)
        require_short(size)
        work.spend(size)
        return result

    return counted


@pass_context
def _turns(context: Context, values: Iterable[object]) -> list[object]:
    """What a loop runs over, as far as turns are left."""
    if isinstance(values, Undefined | str) or not isinstance(values, Iterable):
        kind = "text" if isinstance(values, str) else type(values).__name__
        if isinstance(values, Undefined):
            str(values)  # raises, and names what is missing
        raise SecurityError(f"a loop runs over a {kind}; expected a list")
    work = work_of(context)
    turns = list(islice(values, work.turns + 1))
    work.turns -= len(turns)
    if work.turns < 0:
        raise SecurityError(f"its loops turn more than {MOST_TURNS} times")
    return turns


@pass_context
def _sized(context: Context, value: object) -> object:
    """A value that is made or read: it is paid for, and not too large."""
    size = size_of(value)
    require_short(size)
    work_of(context).spend(size)
    return value


TURNS: Final = "__turns"
"""Name of the filter around what loops run over; no template can say it."""
SIZED: Final = "__sized"
"""Name of the filter around lists that are written out, and around what is compared, sliced or asked by a method."""


def counted_filters(jinja: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """All filters by name, those of `FILTERS` and the two that no template can say; `jinja`: Jinja's own."""
    filters = {name: _counted_filter(jinja[name]) for name in _JINJA_FILTERS}
    filters |= {name: _counted_filter(apply) for name, apply in _OWN_FILTERS.items()}
    return {**filters, TURNS: _turns, SIZED: _sized}
