"""Programs that are arithmetic, and all the others."""

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_services.generation.arithmetic import ProgramRefusedError, compute, program_in


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-2 ** 2", -4),
        ("+5 - -5", 10),
        ("7 // 2 + 7 % 4 - 7 / 2", Fraction(5, 2)),
        ("-7 // 2", -4),
        ("-7 % 3", 2),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("1 / 3 * 3", 1),
        ("2 ** -2", Fraction(1, 4)),
        ("1e3 + 1_000", 2000),
        ("abs(-3) + round(2.567, 2) + min(4, 5) + max([1, 2]) + sum([1, 2, 3])", Fraction(1757, 100)),
        ("round(2.5) + round(3.5)", 6),
        ("sum((1, 2))", 3),
        ("sum([])", 0),
        ("a = 3\nb = a * 4\nprint(b)", 12),
        ("a = b = 3\na * b", 9),
        ("total = 1\ntotal += 4\ntotal *= 2\nanswer = total", 10),
        ("print(1)\nprint(2)", 2),
        ("print(2)\nx = 7", 2),
        ("answer = 3\n4", 3),
        ('x = 3  # don\'t import "os"\nx', 3),
        ("x = 3; y = 4; x * y", 12),
        ("\n  5\n", 5),
        ("x1e5 = 2\nx1e5", 2),
        ("2 ** 1000 / 2 ** 999", 2),
        ("1 ** 1000", 1),
        ("0 ** 0", 1),
    ],
)
def test_what_programs_compute(program, value):
    assert compute(program) == value


HOSTILE = [
    # other code
    "import os", "from os import system", "__import__('os').system('id')", "eval('1')", "exec('1')", "open('x')",
    "compile('1', '', 'eval')", "globals()", "locals()", "vars()", "dir()", "input()", "breakpoint()", "exit()",
    "getattr(1, 'real')", "type(1)", "help()", "id(1)", "len([1])", "int(1)", "float(1)", "pow(2, 3)", "divmod(1, 2)",
    "sorted([1])", "range(10)", "list(range(10**9))", "print(print(1))", "abs(print(1))", "print()", "print(1, 2)",
    "print(1, end=2)", "print(*[1])", "sum(*[[1]])", "sum(**a)", "max(1, key=abs)", "min(1)", "max([])", "max()",
    "sum(1, 2)", "sum()", "abs()", "abs(1, 2)", "abs([1])", "round(1, 0.5)", "round(1, 10**6)", "round(1, -10**6)",
    "round()", "sum([[1]])", "[1, 2]", "(1, 2)", "()", "[]",
    # attributes and dunders
    "(1).__class__", "(1).__class__.__base__.__subclasses__()", "().__class__.__mro__", "a = 1\na.real", "1..real",
    "__name__", "__builtins__", "__builtins__ = 1", "_ = 1\n_", "abs.__call__(1)", "abs = 1\nabs", "print = 1",
    "sum.__self__", "(1).bit_length()",
    # comprehensions, bombs, control flow
    "[x for x in range(10)]", "sum(x for x in range(10**9))", "[1] * 10**9", "[0] * 3", "(1,) * 10**9",
    "sum([1] * 10**9)", "while 1: pass", "for i in a: i", "def f(): f()\nf()", "class A: pass", "lambda: 1",
    "(lambda: 1)()", "(x := 5)", "if 1: 2", "1 if 1 else 2", "1 and 2", "not 1", "assert 1", "del a", "pass",
    "return 1", "yield 1", "await a", "async def f(): 1", "try: 1\nexcept: 2", "with a: 1", "global a", "raise a",
    "match 1:\n case 1: 2",
    # sizes
    "10**1000", "10**10**10", "9**9**9**9", "2**1025", "2**-1025", "2.5**1000", "(2**1000)**1000", "1**(2**1000)",
    "2**1000 * 2**1000", "1e400", "1e308 * 1e308", "1e-400 + 1e-400 * 1e-320", "9" * 400, "9" * 3999, "1 " * 3000,
    "a = 2**1000\na = a * a", "a = 2**600\na *= a", "+".join(["1"] * 700), "5e-324", "0.5 ** 1100", "0 ** -1",
    "2 ** 0.5", "2 ** (1 / 2)", "(-8) ** (1 / 3)",
    # depth
    "(" * 500 + "1" + ")" * 500, "-" * 3900 + "1", "-" * 100 + "1", "[" * 3000,
    "1" + "+1" * 100, "abs(" * 60 + "1" + ")" * 60, "2" + "**1" * 100, "((((((((((", "1" + "." + "a." * 1900,
    "x" * 5000, "print(" * 600,
    # zero, nothing
    "1 / 0", "1 // 0", "1 % 0", "1 / (2 - 2)", "a = 0\n1 /a", "", "  \n", "# only a comment", "a = 1", "a", "a += 1",
    "answer", "None", "True", "True + 1", "...", "1j", "2 + 1j",
    # operators and text
    "1 << 10**9", "1 >> 1", "1 & 1", "1 | 1", "1 ^ 1", "~1", "1 @ 1", "1 < 2", "1 == 1", "1 in [1]", "1 is 1",
    "'a' * 10**9", '"a"', "f'{1}'", "b'a'", "'''a'''", "'%s' % 1", "1, 2", "a, b = 1, 2", "[a] = [1]", "*a, = [1]",
    "a[0] = 1", "a.b = 1", "a: int = 1", "[1][0]", "[1, 2][0:1]", "{1}", "{1: 2}", "@a", "$x", "`1`", "!ls", "?", "a?b",
    # characters
    "1\x00", "\x00", "\ufeff1", "\uff11 + \uff11", "\uff41bs(1)", "\uff41\uff42\uff53(1)",
    "\U0001d7cf+\U0001d7cf", "1\u202e+2", "1\u00a0+ 1", "1 \u2212 1", "1 \u00d7 2",
    "π",
    "\ud800", "1\\\n+1", "1\x0c+1", "\\", "é = 1", "1\u2028import os", "0x10", "0b1", "0o7", "007", "1_", "1__0", "1e",
    "1if 2else 3", "1or 2", "0_7", "1.e", ".", "1..2", "1 2", "1 +", "= 1", "1 = 1", "print(1", "1)", "\t1\n 2",
]  # fmt: skip


@pytest.mark.parametrize("program", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_programs_are_refused(program):
    with pytest.raises(ProgramRefusedError) as refused:
        compute(program)
    assert 0 < len(str(refused.value)) < 400


def test_there_are_enough_hostile_programs():
    assert len(set(HOSTILE)) >= 200


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os", "line 1: Import is no part of arithmetic"),
        ("a = 1\n(1).real", "line 2: Attribute is no part of arithmetic"),
        ("f('x')", '"\'" is no part of arithmetic'),
        ("2 ** 2000", "a power is over the bound of 1024 bits or the exponent 1000"),
        ("b + 1", "the name 'b' has no value"),
        ("b = 1", "it has no answer: end it with `print(x)` or `answer = x`"),
        ("1 / 0", "it divides by zero"),
        ("12ab", "'12a' is no decimal number"),
        ("abs = 1", "the name 'abs' cannot be assigned"),
        ("1 if 2 else 3", "line 1: IfExp is no part of arithmetic"),
        ("1 +", "it is no program: invalid syntax"),
    ],
)
def test_refusals_say_why(program, reason):
    with pytest.raises(ProgramRefusedError) as refused:
        compute(program)
    assert reason in str(refused.value)


def test_bounds_hold_right_up_to_them():
    assert compute("2 ** 1000 * 2 ** 23") == 2**1023
    with pytest.raises(ProgramRefusedError):
        compute("2 ** 1000 * 2 ** 24")
    assert compute("-" * 40 + "1") == 1
    with pytest.raises(ProgramRefusedError, match="nested deeper than 40"):
        compute("-" * 41 + "1")


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("1 + 1", "1 + 1"),
        ("So:\n```python\n1 + 1\n```\nor\n```\n2\n```", "1 + 1\n"),
        ("```\n1 + 1", "1 + 1"),
        ("~~~py\n1\n~~~", "1\n"),
    ],
)
def test_code_fences(text, program):
    assert program_in(text)[0] == program


expressions = st.recursive(
    st.integers(0, 50).map(str),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    ),
    max_leaves=8,
)


@given(expressions)
def test_whole_numbers_are_pythons(expression):
    try:
        expected = eval(expression)  # noqa: S307 - of numbers and five operators
    except ZeroDivisionError:
        with pytest.raises(ProgramRefusedError, match="divides by zero"):
            compute(expression)
    else:
        assert compute(expression) == expected


@given(st.text() | st.text(alphabet="0123456789+-*/()[]=., \nabsumxe_'\"", max_size=60))
def test_any_text_is_computed_or_refused(text):
    with contextlib.suppress(ProgramRefusedError):
        assert isinstance(compute(text), Fraction)
