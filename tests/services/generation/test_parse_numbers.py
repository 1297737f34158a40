"""Numbers in texts as people's models write them."""

import pytest

from logitcask_services.generation.rows import Dropped
from tests.support.services.parsing import answer_of, parse


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
