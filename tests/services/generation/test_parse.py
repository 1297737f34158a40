"""Answers in texts as people's models write them."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.api.generation_steps import Parse
from logitcask_services.generation.answers import find_object
from logitcask_services.generation.row_steps import compile_row_step
from logitcask_services.generation.rows import Dropped, Row, Staged, Written
from logitcask_services.generation.sandbox import SandboxError, run_in_sandbox


def row_of(text: object, **more: Any) -> Row:
    return Row(id="a" * 64, parent="a" * 64, line=7, fields={"output": text, **more})


def parse(text: object, **options: Any) -> Staged:
    sandbox = options.pop("sandbox", None)
    (result,) = compile_row_step(Parse(**options), 3, sandbox=sandbox).apply(iter([row_of(text)]))
    return result


def answer_of(text: object, **options: Any) -> object:
    result = parse(text, **options)
    assert isinstance(result, Row), result
    return result.fields["answer"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 1,234.50 dollars.", 1234.5),
        ("so 7 + 5 = 12.", 12),
        ("Natalia sold 48/2 = 24 clips in May.\n#### 72", 72),
        (r"Therefore \boxed{42}", 42),
        (r"\boxed{-\frac{3}{4}}", -0.75),
        (r"\dfrac{1}{3}", "1/3"),
        ("1.", 1),
        ("It costs 1.5.", 1.5),
        ("It costs $5", 5),
        ("-$5", -5),
        ("$-5", -5),
        (r"\$18", 18),
        ("£1,000,000", 1_000_000),
        ("15%", 15),
        (r"15\%", 15),
        ("\u22125 degrees", -5),
        ("x = - 5", -5),
        ("7-5", 5),
        ("3-5 apples", 5),
        ("3/4 of it", 0.75),
        ("3 / 4", 0.75),
        ("1 1/2 cups", 1.5),
        ("2½", 2.5),
        ("½", 0.5),
        ("1/3", "1/3"),
        ("**12**", 12),
        ("Total: **12** apples", 12),
        (r"1{,}234", 1234),
        (r"1\,234", 1234),
        ("1\u202f234", 1234),
        ("1_000", 1000),
        ("1,2,3", 3),
        ("1,234,5", 5),
        ("答案是42个", 42),
        ("5 cm^2", 5),
        ("10^3", 1000),
        (r"2.5 \times 10^{3} m", 2500),
        ("2.5 \u00d7 10^-1", 0.25),
        ("1e5", 100_000),
        (".5", 0.5),
        ("She had 7 apples on 2020-01-15.", 7),
        ("7 apples on 15/01/2020", 7),
        ("7 apples at 12:30", 7),
        ("7 of H2O, says GPT3.5", 7),
        ("7 with version 1.2.3", 7),
        ("She has 3 apples, then 4, so 9 in all", 9),
        ("0.1", 0.1),
        ("3.00", 3),
        ("+7", 7),
        ("(-3)", -3),
        ("0.1234567890123456789", "1234567890123456789/10000000000000000000"),
        ("123456789012345678901234567890", 123456789012345678901234567890),
    ],
)
def test_the_last_number(text, value):
    found = answer_of(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["", "   ", "no idea", "H2O", "2^5", "1/0", "12:30", "2020-01-15", "1.2.3", "0x1F", "9" * 400, "1e400000"]
)
def test_texts_without_a_number(text):
    result = parse(text)
    assert isinstance(result, Dropped)
    assert (result.step, result.code, result.row.fields) == (3, "unparsed_answer", {"output": text})
    assert result.message.startswith("line 7: expected a number in `output`, got ")
    assert len(result.message) < 300


@pytest.mark.parametrize(
    ("text", "marker", "value", "rationale"),
    [
        ("First 3. The answer is 12 (not 13).", "The answer is", 12, "First 3."),
        ("First 3. the answer is 12.", "The answer is", 12, "First 3."),
        ("6 + 6 = 12\n#### 12\n", "####", 12, "6 + 6 = 12"),
        ("Answer: 3. Wait. Answer: 4", "Answer:", 4, "Answer: 3. Wait."),
        ("A5 and", "A", None, None),
        (r"So \boxed{42}. 3 steps", r"\boxed{", 42, "So"),
        ("x #### 1 1/2", "####", 1.5, "x"),
    ],
)
def test_the_first_number_behind_the_last_marker(text, marker, value, rationale):
    result = parse(text, marker=marker, rationale="why")
    if value is None:
        assert isinstance(result, Dropped)
    else:
        assert (result.fields["answer"], result.fields["why"]) == (value, rationale)


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


def test_programs():
    text = "Let us compute.\n```python\na = 3\nprint(a * 4)  # twelve\n```\nDone."
    result = parse(text, answer="program", rationale="why")
    assert (result.fields["answer"], result.fields["why"]) == (12, "Let us compute.")
    assert answer_of("answer = 1 / 4", answer="program") == 0.25


def test_other_programs_need_a_sandbox():
    result = parse("print(len('abc'))", answer="program")
    assert isinstance(result, Dropped)
    assert "only where the service has a sandbox command" in result.message
    python = [sys.executable, "-I", "-"]
    assert answer_of("print(len('abc'))", answer="program", sandbox=python) == 3
    assert answer_of("print('yes')", answer="program", sandbox=python) == "yes"
    for program, told in [("x = 'a'", "prints its answer"), ("raise KeyError('k')", "ended with 1: KeyError: 'k'")]:
        result = parse(program, answer="program", sandbox=python)
        assert isinstance(result, Dropped)
        assert told in result.message


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("while True: pass", "took longer than 1 s"),
        ("while True: print('x' * 1000)", "wrote more than 65536 bytes"),
        ("import os; os.close(1); os.close(2)\nwhile True: pass", "took longer"),
        ("import os; os.abort()", "ended with -6"),
    ],
)
def test_what_the_sandbox_bounds(program, told):
    with pytest.raises(SandboxError, match=re.escape(told)):
        run_in_sandbox([sys.executable, "-I", "-"], program, 1.0)


def test_the_sandbox_has_no_environment_and_an_empty_folder():
    program = "import os; print(sorted(os.environ.keys() - {'LC_CTYPE'}), os.listdir())"
    assert run_in_sandbox([sys.executable, "-I", "-"], program, 10.0) == "[] []\n"


def test_processes_left_behind_are_killed():
    # The child holds the pipes, so that only the end of its parent tells that the program is over.
    script = "import time; time.sleep(600)"
    program = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {script!r}]).pid)"
    child = int(run_in_sandbox([sys.executable, "-I", "-"], program, 30.0))
    deadline = time.monotonic() + 30
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def is_running(pid):
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_sandbox_commands_that_do_not_exist():
    with pytest.raises(SandboxError, match="'no-such-command' could not be started"):
        run_in_sandbox(["no-such-command"], "1", 1.0)
    with pytest.raises(SandboxError, match="is empty"):
        run_in_sandbox([], "1", 1.0)


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
