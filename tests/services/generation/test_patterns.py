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
