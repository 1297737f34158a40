"""What a program computes, where it is arithmetic and nothing else (as programs of PaD, arXiv 2305.13888, mostly are).

The program is never run: its syntax tree is read, and each node that is known is computed with exact fractions, so that
0.1 + 0.2 is 0.3. Known are numbers, names that were assigned, + - * / // % **, parentheses, `abs`, `round`, `min`,
`max` and `sum`. Its answer is what its last `print` was given, else the name `answer`, else its last line, if that is
an expression. All else is refused. There are no loops and every node is computed once, so bounds on the
text, the tree and the size of numbers bound the time, too: some milliseconds.
"""

import ast
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

LONGEST_TEXT = 4_000
"""Characters."""
MOST_NODES = 600
DEEPEST = 40
MOST_BITS = 1_024
"""Of a numerator or denominator."""
LARGEST_EXPONENT = 1_000
MOST_PLACES = 100
"""Second argument of `round`."""

_COMMENT = re.compile(r"#[^\n]*")
_FOREIGN = re.compile(r"[^A-Za-z0-9_ \t\r\n+\-*/%()\[\],.=;]")
# A number glued to a name. Python's parser warns of some of these and takes others for imaginary or octal numbers.
_GLUED = re.compile(
    r"(?<![A-Za-z0-9_.])(?:[0-9][0-9_]*+(?:\.[0-9_]*+)?+|\.[0-9_]++)(?:[eE][+-]?[0-9]++)?+(?=[A-Za-z_])"
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n`]*\n(.*?)(?:^[ \t]*(?:```|~~~)|\Z)", re.DOTALL | re.MULTILINE)
_OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: lambda a, b: a % b,
}
_FUNCTIONS = frozenset({"abs", "round", "min", "max", "sum", "print"})


class ProgramRefusedError(ValueError):
    """The program is not arithmetic, or not one within the bounds; says why."""


def program_in(text: str) -> tuple[str, int]:
    """The first fenced block of a text, or all of it; and where it begins."""
    if (fence := _FENCE.search(text)) is not None:
        return fence[1], fence.start()
    return text, 0


def compute(program: str) -> Fraction:
    """The answer of a program.

    Raises:
        ProgramRefusedError: it holds something else, exceeds a bound, divides by zero, or has no answer.
    """
    if len(program) > LONGEST_TEXT:
        raise ProgramRefusedError(f"the program has {len(program)} characters; at most {LONGEST_TEXT} are computed")
    # No text can stand between quotes, so every # begins a comment.
    bare = _COMMENT.sub("", program)
    if (foreign := _FOREIGN.search(bare)) is not None:
        raise ProgramRefusedError(f"{foreign[0]!r} is no part of arithmetic")
    if (glued := _GLUED.search(bare)) is not None:
        raise ProgramRefusedError(f"{bare[glued.start() : glued.end() + 1]!r} is no decimal number")
    try:
        tree = ast.parse(bare.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ProgramRefusedError(f"it is no program: {str(error) or type(error).__name__}") from error
    if (nodes := sum(1 for _ in ast.walk(tree))) > MOST_NODES:
        raise ProgramRefusedError(f"it has {nodes} parts; at most {MOST_NODES} are computed")
    return _Run().answer(tree.body)


class _Run:
    """One program, line by line."""

    def __init__(self) -> None:
        self._names: dict[str, Fraction] = {}

    def answer(self, lines: list[ast.stmt]) -> Fraction:
        printed: Fraction | None = None
        last: Fraction | None = None
        for line in lines:
            last = None
            match line:
                case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=[given], keywords=[])):
                    printed = self._value(given, 0)
                case ast.Expr(value=value):
                    last = self._value(value, 0)
                case ast.Assign(targets=targets, value=value):
                    result = self._value(value, 0)
                    for target in targets:
                        self._names[_assigned(target)] = result
                case ast.AugAssign(target=target, op=op, value=value):
                    name = _assigned(target)
                    self._names[name] = _binary(op, self._name(name), self._value(value, 0))
                case _:
                    raise _refusal(line)
        for found in (printed, self._names.get("answer"), last):
            if found is not None:
                return found
        raise ProgramRefusedError("it has no answer: end it with `print(x)` or `answer = x`")

    def _name(self, name: str) -> Fraction:
        if name not in self._names:
            raise ProgramRefusedError(f"the name {name!r} has no value")
        return self._names[name]

    def _value(self, node: ast.expr, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise ProgramRefusedError(f"it is nested deeper than {DEEPEST}")
        match node:
            case ast.Constant(value=value):
                return _literal(value)
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._value(operand, depth + 1)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._value(operand, depth + 1)
            case ast.BinOp(left=left, op=op, right=right):
                return _binary(op, self._value(left, depth + 1), self._value(right, depth + 1))
            case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _FUNCTIONS - {"print"}:
                return self._call(name, given, depth)
            case _:
                raise _refusal(node)

    def _call(self, name: str, given: list[ast.expr], depth: int) -> Fraction:
        listed = name in ("sum", "min", "max") and len(given) == 1 and isinstance(given[0], ast.List | ast.Tuple)
        parts = given[0].elts if listed and isinstance(given[0], ast.List | ast.Tuple) else given
        values = [self._value(part, depth + 1) for part in parts]
        match name, values:
            case "sum", _ if listed:
                result = sum(values, Fraction(0))
            case "min" | "max", [_, *_] if listed or len(values) > 1:
                result = min(values) if name == "min" else max(values)
            case "abs", [value]:
                result = abs(value)
            case "round", [value]:
                result = Fraction(round(value))
            case "round", [value, places] if places.denominator == 1 and abs(places) <= MOST_PLACES:
                result = round(value, int(places))
            case _:
                raise ProgramRefusedError(f"{name} cannot be computed of what it was given")
        return _small(result)


def _assigned(target: ast.expr) -> str:
    if not isinstance(target, ast.Name):
        raise _refusal(target)
    if target.id in _FUNCTIONS or target.id.startswith("_"):
        raise ProgramRefusedError(f"the name {target.id!r} cannot be assigned")
    return target.id


def _literal(value: object) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProgramRefusedError(f"{value!r} is no number")
    if value in (float("inf"), float("-inf")):
        raise ProgramRefusedError(f"a number is over the bound of {MOST_BITS} bits")
    # The decimal that was written, not the double that is nearest to it.
    return _small(Fraction(repr(value)) if isinstance(value, float) else Fraction(value))


def _binary(op: ast.operator, a: Fraction, b: Fraction) -> Fraction:
    if isinstance(op, ast.Pow):
        return _power(a, b)
    if type(op) not in _OPERATORS:
        raise ProgramRefusedError(f"the operator {type(op).__name__} is no part of arithmetic")
    if b == 0 and isinstance(op, ast.Div | ast.FloorDiv | ast.Mod):
        raise ProgramRefusedError("it divides by zero")
    return _small(_OPERATORS[type(op)](a, b))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """Checked before it is computed."""
    if exponent.denominator != 1:
        raise ProgramRefusedError(f"the exponent {exponent} is no whole number")
    if base == 0 and exponent < 0:
        raise ProgramRefusedError("it divides by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    # b bits mean at least 2 ** (b - 1), and its power at least 2 ** ((b - 1) * exponent).
    if abs(exponent) > LARGEST_EXPONENT or (bits - 1) * abs(exponent) > MOST_BITS:
        raise ProgramRefusedError(f"a power is over the bound of {MOST_BITS} bits or the exponent {LARGEST_EXPONENT}")
    return _small(base ** int(exponent))


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise ProgramRefusedError(f"a number is over the bound of {MOST_BITS} bits")
    return value


def _refusal(node: ast.AST) -> ProgramRefusedError:
    return ProgramRefusedError(f"line {getattr(node, 'lineno', 1)}: {type(node).__name__} is no part of arithmetic")
