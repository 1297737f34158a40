"""Answers as models write them when they mean no harm, and texts that would take a careless search for ever."""

import pytest

from logitcask_services.generation.answers import find_choice
from logitcask_services.generation.numbers import find_numbers


def numbers(text):
    return [str(found.value) for found in find_numbers(text)]


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("The answer is **42**.", "42"),
        ("3 + 4 = **7**.", "7"),
        ("It costs **$18**.", "18"),
        ("**3.** is less than **4**...", "4"),
    ],
)
def test_a_full_stop_behind_bold_type_is_no_exponent(text, last):
    assert numbers(text)[-1] == last


@pytest.mark.parametrize("text", ["5**2", "5 ** 2", "2^{10}", "2^.5", "5**-2.5", "10**2."])
def test_powers_are_no_number(text):
    assert numbers(text) == []


@pytest.mark.parametrize("text", ["\nB\n", "> **B**\n\n", "x\n\n\n \t B.\r\n"])
def test_a_letter_alone_in_its_line(text):
    found = find_choice(text, behind_marker=False)
    assert found is not None
    assert found.value == "B"


@pytest.mark.parametrize("piece", ["\n", " \n", "*\n", "\n>", "\t\n\n"])
def test_empty_lines_are_looked_at_once(piece):
    """A search that goes from each line to the end of the text takes minutes for these."""
    assert find_choice(piece * 100_000, behind_marker=False) is None
