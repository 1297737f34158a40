"""Changes by rule: what they may touch, what they must leave, and that a seed alone decides."""

import re
from collections import Counter

import pytest

from logitcask_consumer.tasks.perturbations import (
    DEFAULT_RATES,
    Fields,
    Perturbation,
    PerturbationError,
    parse_perturbations,
)
from logitcask_consumer.tasks.questions import TaskError

CHOICES = ["one", "two", "three", "four"]
FIELDS = Fields(question="q", choices="c", answer="a")
TEXT = (
    "Tom has 3.5 apples, buys 12 more (on Monday) and finds 1,204 others: how many apples does Tom have? "
    "The neighbour's basket isn't counted."
)
ROW = {"q": TEXT, "c": CHOICES, "a": 2, "other": "kept"}


def changed(kind, rate=1.0, *, row=None, seed=0):
    return Perturbation(kind=kind, rate=rate).of(ROW if row is None else row, FIELDS, seed=seed)


@pytest.mark.parametrize("kind", DEFAULT_RATES)
def test_nothing_changes_at_rate_zero_and_something_at_one(kind):
    assert changed(kind, 0.0) == ROW
    assert changed(kind) != ROW


@pytest.mark.parametrize("kind", DEFAULT_RATES)
def test_only_the_seed_and_the_text_decide(kind):
    assert changed(kind, 0.5) == changed(kind, 0.5)
    assert len({str(changed(kind, 0.5, seed=seed)) for seed in range(12)}) > 1
    assert changed(kind, 0.5, row={**ROW, "other": "else"}) == {**changed(kind, 0.5), "other": "else"}


@pytest.mark.parametrize("kind", [kind for kind in DEFAULT_RATES if kind != "order"])
def test_numbers_and_answers_stay(kind):
    for seed in range(20):
        row = changed(kind, seed=seed)
        assert sorted(re.findall(r"\d[\d.,]*\d|\d", row["q"])) == ["1,204", "12", "3.5"]
        assert (row["c"], row["a"], row["other"]) == (ROW["c"], ROW["a"], "kept")


def test_typing_errors_are_one_to_a_word_and_spare_its_first_letter():
    words, mistyped = TEXT.split(), changed("typos")["q"].split()
    assert len(words) == len(mistyped)
    for word, other in zip(words, mistyped, strict=True):
        assert word[0] == other[0]
        assert abs(len(word) - len(other)) <= 1
        if not re.search(r"[^\W\d_]{4}", word):
            assert word == other
            continue
        if len(word) == len(other):
            assert Counter(word) == Counter(other)
            assert sum(a != b for a, b in zip(word, other, strict=True)) == 2


def test_case_words_marks_and_blanks():
    assert changed("case")["q"].lower() == TEXT.lower()
    assert "APPLES" in changed("case")["q"]
    assert changed("case", row={**ROW, "q": "NASA is"})["q"] == "nasa IS"
    assert sorted(changed("words")["q"].split()) == sorted(TEXT.split())
    assert changed("words", row={**ROW, "q": "a b c d e"})["q"] == "b a d c e"
    assert changed("punctuation")["q"].startswith(
        "Tom has 3.5 apples buys 12 more on Monday and finds 1,204 others how"
    )
    assert changed("whitespace")["q"] == TEXT.replace(" ", "  ")


def test_a_rate_is_the_share_of_places():
    row = {**ROW, "q": " ".join(["word"] * 4000)}
    mistyped = sum(word != "word" for word in changed("typos", 0.2, row=row)["q"].split())
    assert 700 < mistyped < 900


@pytest.mark.parametrize("answer", [2, "three"])
def test_the_answer_follows_its_choice(answer):
    for seed in range(30):
        row = changed("order", row={**ROW, "a": answer}, seed=seed)
        right = row["c"][row["a"]] if isinstance(answer, int) else row["a"]
        assert right == "three"
        assert row["c"] != ROW["c"]
        assert sorted(row["c"]) == sorted(CHOICES)
        assert row["q"] == TEXT
    assert changed("order", row={**ROW, "c": ["no", "yes"], "a": 0})["a"] == 1


@pytest.mark.parametrize(
    ("choices", "answer"), [(CHOICES, "B"), (CHOICES, "1"), (CHOICES, 4), (CHOICES, -1), (["one"], 0), ([], 0)]
)
def test_an_answer_that_names_no_choice_cannot_follow_it(choices, answer):
    for rate in (0.0, 1.0):
        with pytest.raises(TaskError, match="is neither the number, from 0, nor the text of one of"):
            changed("order", rate, row={**ROW, "c": choices, "a": answer})


@pytest.mark.parametrize("formula", ["3 + -5", "7 - 12", "is .5", "(2+3)*4", "2.5% - 1"])
def test_formulas_stay(formula):
    for kind in ("punctuation", "words"):
        assert changed(kind, row={**ROW, "q": formula})["q"] == formula
    assert changed("punctuation", row={**ROW, "q": "a well-known fact, (really)!"})["q"] == "a wellknown fact really"


def test_what_is_asked_for_is_read_or_refused():
    typos, order = parse_perturbations("typos:0.1, order")
    assert (typos, order) == (Perturbation(kind="typos", rate=0.1), Perturbation(kind="order", rate=1.0))
    assert not order.applies_to(Fields(question="q"))
    for text, message in (
        ("typo", "there is no perturbation 'typo', only typos, case"),
        ("typos:2", "from 0 to 1"),
        ("typos:nan", "from 0 to 1"),
        ("typos:some", "must be a number"),
        ("case,case:1", "named twice"),
        ("", "there is no perturbation ''"),
    ):
        with pytest.raises(PerturbationError, match=message):
            parse_perturbations(text)
