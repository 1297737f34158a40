"""Fields compared with each other."""

from typing import Any

import pytest

from logitcask_schemas.api.generation_steps import Check
from logitcask_services.generation.row_steps import compile_row_step
from logitcask_services.generation.rows import Dropped, Row, Staged


def check(answer: object, expected: object, **options: Any) -> Staged:
    row = Row(id="a", parent="a", line=7, fields={"answer": answer, "label": expected})
    (result,) = compile_row_step(Check(against="label", **options), 4).apply(iter([row]))
    return result


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (12, "12.0"),
        (12, 12.0),
        ("12", 12),
        (1000, "1,000"),
        (5, "$5"),
        (0.1, "0.1"),
        (0.1, "0.10"),
        ("1/3", "1/3"),
        (0.5, "1/2"),
        (-5, "\u22125"),
        (15, "15%"),
        (12345678901234567890, "12345678901234567890"),
    ],
)
def test_equal_numbers(answer, expected):
    result = check(answer, expected)
    assert isinstance(result, Row)
    assert result.checks == {"answer_equals_label": True}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (12, 13),
        (0.1, "0.1000001"),
        (12345678901234567890, "12345678901234567891"),
        (None, 12),
        ("twelve", 12),
        (True, 1),
        ([12], 12),
        (0.333333, "1/3"),
    ],
)
def test_other_numbers(answer, expected):
    result = check(answer, expected)
    assert isinstance(result, Dropped)
    assert (result.step, result.code) == (4, "wrong_answer")
    assert result.message == f"line 7: expected `answer` to be {expected!r}, got {answer!r}"
    marked = check(answer, expected, otherwise="mark")
    assert isinstance(marked, Row)
    assert marked.checks == {"answer_equals_label": False}


@pytest.mark.parametrize("expected", [None, "twelve", "6 + 6 = 12", True, [12], float("nan")])
def test_references_that_are_no_numbers(expected):
    result = check(12, expected)
    assert isinstance(result, Dropped)
    assert result.code == "no_reference"
    assert "expected a number in `label`" in result.message
    assert check(12, expected, otherwise="mark").checks == {"answer_equals_label": None}


def test_an_absent_reference():
    row = Row(id="a", parent="a", line=7, fields={"answer": 12})
    (result,) = compile_row_step(Check(against="label"), 0).apply(iter([row]))
    assert (result.code, "got None" in result.message) == ("no_reference", True)


@pytest.mark.parametrize(
    ("answer", "expected", "equal"),
    [
        (" New  York\n", "new york", True),
        ("STRASSE", "straße", True),
        ("B", "b", True),
        ("12", 12, True),
        ("12.0", 12, False),
        ("York", "New York", False),
        (None, "x", False),
    ],
)
def test_texts(answer, expected, equal):
    assert check(answer, expected, equal="text", otherwise="mark").checks == {"answer_equals_label": equal}


@pytest.mark.parametrize(
    ("answer", "expected", "equal"),
    [
        (["b", "A"], ["a", "B"], True),
        (["1.0", "x"], ["x", 1], True),
        (["a", "a"], ["a"], True),
        ([], [], True),
        ([["a"], {"b": 1}], [{"b": 1}, ["A"]], True),
        (["a"], ["a", "b"], False),
        ("a", ["a"], False),
        ([True], [1], False),
        ([0], [None], False),
    ],
)
def test_sets(answer, expected, equal):
    assert check(answer, expected, equal="set", otherwise="mark").checks == {"answer_equals_label": equal}


def test_dropped_rows_pass_through():
    dropped = Row(id="a", parent="a", line=1).drop(0, "code", "message")
    assert list(compile_row_step(Check(against="label"), 1).apply(iter([dropped]))) == [dropped]
