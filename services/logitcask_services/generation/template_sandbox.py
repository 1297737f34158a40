"""Jinja for prompts, of which only so much is left that neither a template nor a field can do harm.

Templates say what a prompt looks like; they compute little. So everything is refused that is not listed here: other
statements, filters, methods, operators. What is left cannot reach Python's objects, files or the network, and its
time and memory are bounded: texts by `LONGEST_TEXT`, turns of all loops by `MOST_TURNS`, what filters and operators
read and write by `MOST_WORK` (see `template_budget`). It builds on Jinja's ImmutableSandboxedEnvironment.
"""

import json
from typing import Any, Final

from jinja2 import StrictUndefined, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from logitcask_services.generation.template_budget import require_short, size_of, work_of
from logitcask_services.generation.template_filters import FILTERS, SIZED, TURNS, counted_filters

_LARGEST_BITS: Final = 256
"""Of a whole number."""
_STRING_METHODS: Final = frozenset(
    {"strip", "lstrip", "rstrip", "split", "splitlines", "lower", "upper", "capitalize", "startswith", "endswith"}
)
_TESTS: Final = (
    "boolean", "defined", "divisibleby", "even", "false", "in", "integer", "mapping", "none", "number", "odd",
    "sequence", "string", "true", "undefined", "eq", "equalto", "==", "ne", "!=", "lt", "<", "le", "<=", "gt", ">",
    "ge", ">=",
)  # fmt: skip
_ALLOWED: Final = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.Name, nodes.Const,
    nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand, nodes.And,
    nodes.Or, nodes.Not, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Neg, nodes.Pos,
    nodes.CondExpr, nodes.Call, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Concat,
)  # fmt: skip


class FieldText(str):
    """A text that an expression wrote, not the template itself: it comes from a row."""

    __slots__ = ()

    def __str__(self) -> str:
        """Itself: `str` of it, which compiled templates call, must not forget where it comes from."""
        return self


class UnknownSyntaxError(ValueError):
    """A template uses what is not listed here."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


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
            node.node = self._filter(node.node, SIZED)
            node.args = [self._filter(argument, SIZED) for argument in node.args]
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
            called.node = self._filter(called.node, SIZED)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, SIZED)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, SIZED) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, SIZED)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._filter(node.node, SIZED)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._filter(node.expr, SIZED)
        for operand in node.ops:
            operand.expr = self._filter(operand.expr, SIZED)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise UnknownSyntaxError(node.lineno, "a loop cannot be `recursive`")
        self.generic_visit(node)
        node.iter = self._filter(node.iter, TURNS)
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
        self.filters = counted_filters(self.filters)
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
        sizes = size_of(left) + size_of(right)
        work_of(context).spend(1 + sizes)
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
            require_short(sizes)
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
