"""The rule-made word problems of the figures: right by another way of reading them, and held out for good."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from word_problems import FORMS, answer_in, part_of, word_problems, write_problems

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}


def numbers_of(question):
    """The numbers that a question names, in order."""
    return [NUMBERS[word] for word in re.findall(r"[a-z]+", question.lower()) if word in NUMBERS]


def all_sums_hold(rationale):
    """Whether a rationale has two equations, each of them true, the second going on from the first."""
    sums = [tuple(map(int, found)) for found in re.findall(r"(\d+) \+ (\d+) = (\d+)", rationale)]
    return len(sums) == 2 and all(a + b == c for a, b, c in sums) and sums[1][0] == sums[0][2]


@pytest.mark.parametrize("part", ["teacher", "student", "test"])
def test_answers_and_reasoning_are_right_by_the_words_of_the_question(part):
    for one in word_problems(1000, seed=3, part=part):
        numbers = numbers_of(one.question)
        assert len(numbers) == 3
        assert sum(numbers) == one.answer == answer_in(one.rationale)
        assert all_sums_hold(one.rationale)
        said = [int(number) for number in re.findall(r"\d+", one.rationale)]
        assert [said[0], said[1], said[5]] == [numbers[0], numbers[1], numbers[2]]


def test_a_wrong_rationale_is_found_to_be_wrong():
    assert not all_sums_hold("Tom has 3 apples. He buys 4 more: 3 + 4 = 8. He finds 5: 8 + 5 = 13.")
    assert not all_sums_hold("Tom has 3 apples. He buys 4 more: 3 + 4 = 7. He finds 5: 6 + 5 = 11.")


def test_no_two_parts_share_their_numbers_in_any_order():
    def triples(part):
        return {tuple(sorted(numbers_of(one.question))) for one in word_problems(5000, seed=5, part=part)}

    parts = {part: triples(part) for part in ("teacher", "student", "test")}
    assert all(part_of(reversed(numbers)) == part for part, found in parts.items() for numbers in found)
    assert all(len(found) > 20 for found in parts.values())
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 165


def test_problems_differ_from_each_other_and_come_in_every_form():
    problems = word_problems(2000, seed=1, part="student")
    assert len({one.question for one in problems}) == 2000
    endings = {form.question[-12:] for form in FORMS}
    assert {ending for one in problems for ending in endings if one.question.endswith(ending)} <= endings
    assert (
        sum(any(re.search(pattern, one.question) for one in problems) for pattern in ("buys", "bag", "Mon", "own")) == 4
    )
    assert any("one apple," in one.question for one in problems)
    assert not any(re.search(r"\bone \w+s\b", one.question) for one in problems if "one is" not in one.question)


def test_a_seed_always_draws_the_same_and_another_seed_others():
    first = word_problems(50, seed=1, part="student")
    assert first == word_problems(50, seed=1, part="student")
    assert first != word_problems(50, seed=2, part="student")


def test_more_problems_than_there_are_is_an_error_that_says_how_many_there_are():
    total = (
        4 * 8 * 8 * sum(part_of((a, b, c)) == "test" for a in range(1, 10) for b in range(1, 10) for c in range(1, 10))
    )
    assert len(word_problems(total, seed=0, part="test")) == total
    with pytest.raises(ValueError, match=f"0 to {total}"):
        word_problems(total + 1, seed=0, part="test")
    with pytest.raises(ValueError, match="got -1"):
        word_problems(-1, seed=0, part="test")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So 3 + 4 = 7. The answer is 7.", 7),
        ("The answer is 7. No: The answer is 12", 12),
        ("The answer is\n12.", 12),
        ("3 + 4 = 7", None),
        ("The answer is seven.", None),
        ("The answer is 7.5.", None),
        ("The answer is 1,200.", None),
        ("The answer is -7.", None),
        ("The answer is 7. The answer is", None),
        ("", None),
    ],
)
def test_the_answer_is_the_whole_number_behind_the_last_marker(text, answer):
    assert answer_in(text) == answer


def test_a_corpus_has_a_line_for_each_problem(tmp_path):
    problems = word_problems(3, seed=0, part="test")
    assert write_problems(tmp_path / "new" / "problems.jsonl", problems) == 3
    rows = [json.loads(line) for line in (tmp_path / "new" / "problems.jsonl").read_text().splitlines()]
    assert [(row["question"], row["answer"], row["rationale"]) for row in rows] == [
        (one.question, one.answer, one.rationale) for one in problems
    ]
    assert [row["custom_id"] for row in rows] == ["problem-0", "problem-1", "problem-2"]
