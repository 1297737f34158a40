"""Callers' regular expressions: compiled with a reason why not, searched within a time."""

import pytest

from logitcask_services.generation import patterns
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.patterns import Pattern


def test_a_pattern_is_searched():
    (match,) = filter(None, [Pattern(r"(\d+)$", "here").search("a 12")])
    assert match[1] == "12"
    assert Pattern("^b", "here").search("ab") is None


@pytest.mark.parametrize("wrong", ["(", "[a", "*", "(?P<1>a)"])
def test_what_is_no_pattern_is_refused_with_its_place(wrong):
    with pytest.raises(RecipeError, match=r"step 3, matches: .* is no regular expression"):
        Pattern(wrong, "step 3, matches")


def test_a_search_that_takes_for_ever_ends_with_a_reason(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    slow = Pattern(r"^(a|aa)+$", "step 3, matches")
    with pytest.raises(RecipeError, match=r"took longer than 0.1 s on a text of 81 characters"):
        slow.search("a" * 80 + "b")
    assert slow.search("short") is None


@pytest.mark.parametrize(
    "huge",
    [
        "x{100000000}",
        "x{1000000,}?",
        "(?:(?:x{1000}){1000}){1000}",
        "(?x) x{10 00 00 00}",
        "(?x) x{10#so many\n000000}",
        "".join(f"x{{{9 * 10**8}}}" for _ in range(80)),
    ],
)
def test_a_few_characters_that_come_to_gigabytes_are_refused(huge):
    """The library writes exact repetitions out: the process would be killed for want of memory."""
    with pytest.raises(RecipeError, match=r"step 3, matches: the repetitions in .* come to .* at most 20,000"):
        Pattern(huge, "step 3, matches")


@pytest.mark.parametrize("usual", [r"^\d{4}-\d{2}-\d{2}$", "^.{20,2000}$", "[A-Z]{3}[0-9]{6}", "(ab+){2,9}"])
def test_usual_repetitions_are_searched(usual):
    assert Pattern(usual, "here").search("") is None


def test_an_expression_that_contains_itself_is_refused_when_it_runs_over():
    with pytest.raises(RecipeError, match=r"step 3, matches: .* took too much memory on a text of 1 characters"):
        Pattern("(?R)", "step 3, matches").search("a")
