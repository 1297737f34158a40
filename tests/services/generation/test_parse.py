"""Answers in texts as people's models write them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.api.generation_steps import Parse
from logitcask_services.generation.answers import find_object
from logitcask_services.generation.row_steps import compile_row_step
from logitcask_services.generation.rows import Dropped, Row, Written
from tests.support.services.parsing import answer_of, parse, row_of


def test_a_text_without_the_marker_has_no_answer():
    result = parse("it is 12", marker="####")
    assert isinstance(result, Dropped)
    assert "behind the marker '####'" in result.message


def test_without_a_marker_the_rationale_ends_at_the_answer():
    assert parse("so 7 + 5 = 12.", rationale="why").fields["why"] == "so 7 + 5 ="


@pytest.mark.parametrize("value", [None, 5, ["12"], {"a": 1}, True])
def test_fields_that_are_no_text(value):
    result = parse(value)
    assert isinstance(result, Dropped)
    assert "expected text in `output`" in result.message


def test_an_absent_field():
    (result,) = compile_row_step(Parse(of="other"), 0).apply(iter([row_of("12")]))
    assert isinstance(result, Dropped)
    assert "expected text in `other`, got None" in result.message


def test_mark_keeps_the_row_with_null():
    result = parse("no idea", otherwise="mark", rationale="why")
    assert (result.fields["answer"], result.fields["why"]) == (None, None)
    assert "expected a number" in result.checks["answer_unparsed"]


def test_the_message_names_the_sample_and_shows_the_end_of_a_long_text():
    written = Written(
        token_ids=[1], text="x", finish="stop", logprob=-1.0, sample=2, seed=0, template="t", template_sha256="0",
        prompt_ids=lambda: [0],
    )  # fmt: skip
    row = Row(id="b", parent="a", line=9, fields={"output": "x" * 10_000 + "the end"}, written={"output": written})
    (result,) = compile_row_step(Parse(), 0).apply(iter([row]))
    assert result.message.startswith("line 9, sample 2: ")
    assert "the end" in result.message
    assert len(result.message) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Answer: (B)", "B"),
        ("B.", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("c) because", "C"),
        ("The answer is C", "C"),
        ("The answer is **D**.", "D"),
        ("The answer is __D__.", "D"),
        ("The answer is _D_, not A_B", "D"),
        ("__D__", "D"),
        ("(__d__)", "D"),
        (r"\boxed{\textbf{D}}", "D"),
        (r"\boxed{\mathrm{D}}", "D"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("A or B? B, not A. (C)", "C"),
        ("A bird is in option B, I think", "B"),
        ("Not A but B", "B"),
        ("[E]", "E"),
        ("I'd say C.", "C"),
    ],
)
def test_choices(text, value):
    assert answer_of(text, answer="choice") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Answer: A because B is wrong", "A"),
        ("Answer: b", "B"),
        ("Answer: (C) or D", "C"),
        ("Answer: I think D", "D"),
        ("Answer: **B**", "B"),
    ],
)
def test_choices_behind_a_marker(text, value):
    assert answer_of(text, answer="choice", marker="answer:") == value


@pytest.mark.parametrize("text", ["", "no idea", "a bird", "C++ and C#", "f(x)", "I am sure", "vitamins", "U.S."])
def test_texts_without_a_choice(text):
    assert isinstance(parse(text, answer="choice"), Dropped)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Here:\n```json\n{"a": {"b": "}"}}\n```\nDone {"c": 2}', {"a": {"b": "}"}}),
        ('The set {x} is {"a": "\\"{"}', {"a": '"{'}),
        ('{bad} {"a": [1.5, null]}', {"a": [1.5, None]}),
        ('[{"a": 1}]', {"a": 1}),
    ],
)
def test_objects(text, value):
    assert answer_of(text, answer="json") == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": 1}, "c": "cut',
        "{}x"[2:],
        "[1, 2]",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a": {"b": 1} oops}',
        "{" * 100_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        '{"a": ' + "9" * 5_000 + "}",
    ],
)
def test_texts_without_an_object(text):
    assert isinstance(parse(text, answer="json"), Dropped)


@given(
    st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)), st.text()
)
def test_any_object_is_found_whole(value, around):
    text = json.dumps(value)
    before = around.replace("{", "").replace("}", "")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        assert find_object(before + text) is None
    else:
        assert find_object(before + text + around).value == value


@pytest.mark.parametrize(
    ("text", "pattern", "value"),
    [("key=12;", r"key=(\d+)", "12"), ("key=12;", r"\d+", "12"), ("ab", r"(x)?b", None), ("ab", "c", None)],
)
def test_patterns(text, pattern, value):
    result = parse(text, answer="regex", pattern=pattern)
    assert (None if isinstance(result, Dropped) else result.fields["answer"]) == value


def test_a_pattern_that_is_none():
    with pytest.raises(ValueError, match=r"step 2, pattern: '\(' is no regular expression"):
        compile_row_step(Parse(answer="regex", pattern="("), 2)


def test_text():
    assert answer_of("  all of it \n", answer="text") == "all of it"
    assert answer_of("x Label: positive ", answer="text", marker="Label:") == "positive"
    assert isinstance(parse(" \n", answer="text"), Dropped)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1. Write a poem\n2. Sum up\n", ["Write a poem", "Sum up"]),
        (
            "Here are some:\n1) Write a poem\n   in two\n   lines\n2) Sum up",
            ["Write a poem\n   in two\n   lines", "Sum up"],
        ),
        ("**1.** Write a poem\n\n**2.** Sum up", ["Write a poem", "Sum up"]),
        (" Write a poem\n10. Sum up\n11.", ["Write a poem", "Sum up"]),
        ("Here are more:\n9. Sum up", ["Sum up"]),
        ("1. Do this:\n   1. first\n   2. second\n2. Sum up", ["Do this:\n   1. first\n   2. second", "Sum up"]),
        ("1. In the year\n1999. was good\n2. Sum up", ["In the year\n1999. was good", "Sum up"]),
        ("1. Round 1.5 and 2.5", ["Round 1.5 and 2.5"]),
    ],
)
def test_lists(text, value):
    assert answer_of(text, answer="list") == value


@pytest.mark.parametrize("text", ["", "Write a poem", "1.\n2.\n", "1.5 apples"])
def test_texts_without_a_list(text):
    assert isinstance(parse(text, answer="list"), Dropped)


def test_dropped_rows_pass_through():
    dropped = row_of("12").drop(0, "code", "message")
    assert next(compile_row_step(Parse(), 1).apply(iter([dropped, row_of("12")]))) is dropped


def test_rows_are_read_one_at_a_time():
    def rows():
        yield row_of("12")
        raise AssertionError("read ahead")

    assert next(compile_row_step(Parse(), 1).apply(rows())).fields["answer"] == 12


@pytest.mark.parametrize("answer", ["number", "choice", "json", "list", "text", "program"])
@given(text=st.text(max_size=80), marker=st.none() | st.text(min_size=1, max_size=2))
def test_no_text_breaks_a_parser(answer, text, marker):
    assert isinstance(parse(text, answer=answer, marker=marker, rationale="why"), Row | Dropped)


def test_an_object_that_is_too_deep_to_be_stored_is_none():
    def nested(depth):
        return '{"a":' * depth + "1" + "}" * depth

    found = find_object(nested(64))
    assert found is not None
    assert json.dumps(found.value, separators=(",", ":")) == nested(64)
    assert find_object(nested(65)) is None
