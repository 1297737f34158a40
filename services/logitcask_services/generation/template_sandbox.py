"""Jinja for prompts, of which only so much is left that neither a template nor a field can do harm.

Templates say what a prompt looks like; they compute little. So everything is refused that is not listed here: other
statements, filters, methods, operators. What is left cannot reach Python's objects, files or the network, and its
time and memory are bounded: texts by `LONGEST_TEXT`, turns of all loops by `MOST_TURNS`, what filters and operators
read and write by `MOST_WORK`. It builds on Jinja's ImmutableSandboxedEnvironment.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from jinja2 import StrictUndefined, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

LONGEST_TEXT: Final = 1_000_000
"""Characters of a text that a template writes, or of one that it makes on the way."""
MOST_TURNS: Final = 20_000
"""Of all loops of a template together, each time it is rendered."""
MOST_WORK: Final = 50_000_000
"""Characters and items that filters and operators may read or write each time a template is rendered."""
_LARGEST_BITS: Final = 256
"""Of a whole number."""
_STRING_METHODS: Final = frozenset(
    {"strip", "lstrip", "rstrip", "split", "splitlines", "lower", "upper", "capitalize", "startswith", "endswith"}
)
_WORK: Final = "__work"
"""Name of the budget among a template's variables; no template can say it."""


class FieldText(str):
    """A text that an expression wrote, not the template itself: it comes from a row."""

    __slots__ = ()

    def __str__(self) -> str:
        """Itself: `str` of it, which compiled templates call, must not forget where it comes from."""
        return self


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


class UnknownSyntaxError(ValueError):
    """A template uses what is not listed here."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def _work(context: Context) -> Work:
    work = context.resolve(_WORK)
    if not isinstance(work, Work):
        raise SecurityError("a template is rendered without a budget")
    return work


def _size(value: object) -> int:
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


def _require_short(size: int) -> None:
    if size > LONGEST_TEXT:
        raise SecurityError(f"it makes a text or list of {size} characters or items; at most {LONGEST_TEXT}")


# -- filters -------------------------------------------------------------------------------------------------------


def _replace(text: object, old: str, new: str) -> str:
    value = str(text)
    _require_short(len(value) + (value.count(old) if old else len(value) + 1) * len(new))
    return value.replace(old, new)


def _join(values: Iterable[object], between: str = "") -> str:
    parts = [str(value) for value in values]
    _require_short(sum(map(len, parts)) + len(between) * len(parts))
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
_TESTS: Final = (
    "boolean", "defined", "divisibleby", "even", "false", "in", "integer", "mapping", "none", "number", "odd",
    "sequence", "string", "true", "undefined", "eq", "equalto", "==", "ne", "!=", "lt", "<", "le", "<=", "gt", ">",
    "ge", ">=",
)  # fmt: skip


def _counted_filter(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it reads and what it writes."""
    first = getattr(apply, "jinja_pass_arg", None)

    @pass_context
    def counted(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        work = _work(context)
        work.spend(1 + _size(value))
        given = {"context": (context,), "environment": (context.environment,), "eval_context": (context.eval_ctx,)}
        before = given[first.name] if first is not None else ()
        result = apply(*before, value, *args, **kwargs)
        if not isinstance(result, str | list | tuple | dict | int | float | Undefined | None):
            result = list(islice(result, LONGEST_TEXT + 1))  # `map` and its like give generators
        size = _size(result)
        _require_short(size)
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
    work = _work(context)
    turns = list(islice(values, work.turns + 1))
    work.turns -= len(turns)
    if work.turns < 0:
        raise SecurityError(f"its loops turn more than {MOST_TURNS} times")
    return turns


@pass_context
def _sized(context: Context, value: object) -> object:
    """A value that is made or read: it is paid for, and not too large."""
    size = _size(value)
    _require_short(size)
    _work(context).spend(size)
    return value


_TURNS: Final = "__turns"
"""Name of the filter around what loops run over; no template can say it."""
_SIZED: Final = "__sized"
"""Name of the filter around lists that are written out, and around what is compared, sliced or asked by a method."""


# -- syntax --------------------------------------------------------------------------------------------------------

_ALLOWED: Final = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.Name, nodes.Const,
    nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand, nodes.And,
    nodes.Or, nodes.Not, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg, nodes.Pos,
    nodes.CondExpr, nodes.Call, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Concat,
)  # fmt: skip


class _Guard(NodeTransformer):
    """Refuses what is not listed, and puts counters around loops, lists and what reads more than an item."""

    def __init__(self, environment: "PromptEnvironment") -> None:
        self._environment = environment

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if type(node) not in _ALLOWED:
            raise UnknownSyntaxError(
                node.lineno, f"a template cannot use `{type(node).__name__.lower()}`; leave it out, or write it out"
            )
        return super().generic_visit(node, *args, **kwargs)

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        if node.name.startswith("_"):
            raise UnknownSyntaxError(node.lineno, f"the name `{node.name}` begins with _; use another")
        return self.generic_visit(node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        if node.node is None or node.name not in FILTERS:
            raise UnknownSyntaxError(
                node.lineno,
                f"there is no filter `{node.name}` here; expected one of {', '.join(sorted(FILTERS))}",
            )
        return self.generic_visit(node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        if node.name not in _TESTS:
            raise UnknownSyntaxError(
                node.lineno, f"there is no test `{node.name}` here; expected one of {', '.join(sorted(_TESTS))}"
            )
        self.generic_visit(node)
        if node.args:  # it compares
            node.node = self._filter(node.node, _SIZED)
            node.args = [self._filter(argument, _SIZED) for argument in node.args]
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        called = node.node
        is_range = isinstance(called, nodes.Name) and called.name == "range"
        is_method = isinstance(called, nodes.Getattr) and called.attr in {*_STRING_METHODS, "cycle"}
        if not (is_range or is_method):
            raise UnknownSyntaxError(
                node.lineno,
                "only `range(...)`, `loop.cycle(...)` and these methods of texts can be called: "
                f"{', '.join(sorted(_STRING_METHODS))}; use a filter for all else",
            )
        self.generic_visit(node)
        if isinstance(called, nodes.Getattr) and called.attr in _STRING_METHODS:
            called.node = self._filter(called.node, _SIZED)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, _SIZED)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, _SIZED) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, _SIZED)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._filter(node.node, _SIZED)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._filter(node.expr, _SIZED)
        for operand in node.ops:
            operand.expr = self._filter(operand.expr, _SIZED)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise UnknownSyntaxError(node.lineno, "a loop cannot be `recursive`")
        self.generic_visit(node)
        node.iter = self._filter(node.iter, _TURNS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(nodes.List(node.nodes, lineno=node.lineno, environment=self._environment), "join")

    def _filter(self, node: nodes.Node, name: str) -> nodes.Filter:
        assert isinstance(node, nodes.Expr)  # what a loop runs over is one
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=self._environment)


class PromptEnvironment(ImmutableSandboxedEnvironment):
    """The environment of prompt templates, see the module's docstring."""

    intercepted_binops = frozenset({"+", "*", "%", "-", "/", "//"})

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined,
            autoescape=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=_finalize,
            loader=None,
        )
        jinja = self.filters
        self.filters = {name: _counted_filter(jinja[name]) for name in _JINJA_FILTERS}
        self.filters |= {name: _counted_filter(apply) for name, apply in _OWN_FILTERS.items()}
        self.filters[_TURNS] = _turns
        self.filters[_SIZED] = _sized
        self.tests = {name: self.tests[name] for name in _TESTS}
        self.globals = {"range": self.globals["range"]}

    def guarded(self, source: str, name: str) -> nodes.Template:
        """The syntax tree of a template, checked.

        Raises:
            TemplateSyntaxError: it is not Jinja.
            UnknownSyntaxError: it uses what is not listed here.
            RecursionError: it is nested too deeply.
        """
        tree = self.parse(source, name)
        _Guard(self).visit(tree)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field of an object of JSON, a method of a text, or what a loop knows of itself; nothing else."""
        if isinstance(obj, dict):
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if isinstance(obj, str) and attribute in _STRING_METHODS:
            return getattr(str(obj), attribute)
        if isinstance(obj, LoopContext):
            return super().getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item of an object, list or text of JSON; nothing else."""
        if isinstance(obj, dict | list | tuple | str):
            try:
                return obj[argument]
            except (TypeError, LookupError):
                pass
        return self.undefined(obj=obj, name=argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator whose result is of bounded size."""
        sizes = _size(left) + _size(right)
        _work(context).spend(1 + sizes)
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if numbers:
            if sum(value.bit_length() for value in (left, right) if isinstance(value, int)) > _LARGEST_BITS:
                raise SecurityError(f"`{operator}` is given numbers of more than {_LARGEST_BITS} bits together")
        elif not isinstance(left, Undefined) and not isinstance(right, Undefined):
            if operator != "+" or not isinstance(left, str | list) or not isinstance(right, str | list):
                raise SecurityError(
                    f"`{operator}` stands between {type(left).__name__} and {type(right).__name__}; expected two "
                    "numbers, or `+` between two texts"
                )
            _require_short(sizes)
        return super().call_binop(context, operator, left, right)


def _finalize(value: object) -> FieldText:
    """What an expression writes: texts as they are, all else as JSON."""
    if isinstance(value, str):
        return FieldText(value)
    if isinstance(value, Undefined):
        str(value)  # raises, and names what is missing
    if value is None:
        raise SecurityError("it writes a null; ask `{% if ... is not none %}` first")
    return FieldText(json.dumps(value, ensure_ascii=False))


FILTERS: Final = frozenset({*_JINJA_FILTERS, *_OWN_FILTERS})
"""Names of all filters."""
