"""Votes among the samples of a row."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from logitcask_schemas.api.generation_steps import Vote
from logitcask_services.generation.row_steps import compile_row_step
from logitcask_services.generation.rows import Dropped, Row, Staged


def samples(answers: Sequence[object], parent: str = "p", line: int = 1) -> list[Row]:
    return [Row(id=f"{parent}{n}", parent=parent, line=line, fields={"answer": a}) for n, a in enumerate(answers)]


def vote(rows: Sequence[Staged], **options: Any) -> list[Staged]:
    return list(compile_row_step(Vote(**options), 5).apply(iter(rows)))


def codes(result: Sequence[Staged]) -> list[str]:
    return [staged.code if isinstance(staged, Dropped) else "" for staged in result]


def test_the_majority_stays_with_its_answer_and_share():
    result = vote(samples([3, "12", 12.0, None]))
    assert codes(result) == ["outvoted", "", "", "outvoted"]
    for row in result[1:3]:
        assert (row.fields["majority"], row.fields["majority_share"]) == ("12", 0.5)
        assert row.checks == {"majority": {"votes": 2, "of": 4}}
    assert result[0].step == 5
    assert result[0].message == "line 1: expected the majority's `answer`, got 3: 2 of 4 samples said '12'"


def test_of_equals_the_first_to_appear_wins():
    assert codes(vote(samples([5, 7, 7, 5, 1]))) == ["", "outvoted", "outvoted", "", "outvoted"]
    assert codes(vote(samples([7, 5, 5, 7, 1]))) == ["", "outvoted", "outvoted", "", "outvoted"]


def test_one_is_the_first_of_the_majority():
    assert codes(vote(samples([3, 12, 12]), keep="one")) == ["outvoted", "", "not_first"]


def test_all_stay_with_what_the_vote_said():
    result = vote(samples([3, 12, 12]), keep="all")
    assert [row.fields["majority"] for row in result] == [12, 12, 12]
    result = vote(samples([None, None]), keep="all")
    assert [(row.fields["majority"], row.fields["majority_share"]) for row in result] == [(None, 0.0)] * 2


@pytest.mark.parametrize("keep", ["majority", "one", "all"])
def test_too_small_a_share_keeps_none(keep):
    rows = samples([1, 1, 2, None])
    assert "" in codes(vote(rows, keep=keep, min_share=0.5))
    assert codes(vote(rows, keep=keep, min_share=0.51)) == ["no_majority"] * 4


def test_nobody_voted():
    result = vote(samples([None, None]))
    assert codes(result) == ["no_majority"] * 2
    assert "expected an answer in `answer`" in result[0].message


def test_texts_lists_and_truth_values():
    assert codes(vote(samples(["x", "New York", " new  york"]))) == ["outvoted", "", ""]
    assert codes(vote(samples([True, 1, 1.0]))) == ["outvoted", "", ""]
    assert codes(vote(samples([[1, "a"], [2], ["1.0", "A"]]))) == ["", "outvoted", ""]
    assert codes(vote(samples([{"a": 1, "b": 2}, {}, {"b": 2, "a": 1}]))) == ["", "outvoted", ""]


def test_into_names_the_fields():
    row = vote(samples([4]), into="most")[0]
    assert (row.fields["most"], row.fields["most_share"], row.checks["most"]["of"]) == (4, 1.0, 1)


def test_dropped_rows_stand_where_they_stood_and_part_no_group():
    one, other, third = samples([1, 2, 2])
    lost = [staged.drop(0, "lost", "x") for staged in samples([9, 9])]
    elsewhere = samples([8], parent="q", line=2)[0].drop(0, "lost", "x")
    result = vote([lost[0], one, lost[1], other, third, elsewhere, *samples([1], parent="r", line=3)])
    assert codes(result) == ["lost", "outvoted", "lost", "", "", "lost", ""]
    assert [s.row if isinstance(s, Dropped) else s for s in result][2] is lost[1].row
    # A dropped row of the same line, though of another parent, may stand among the samples, too.
    sibling = samples([8], parent="q", line=1)[0].drop(0, "lost", "x")
    assert codes(vote([one, sibling, other, third])) == ["outvoted", "lost", "", ""]


def test_a_long_run_of_dropped_rows_is_not_gathered():
    lost = [row.drop(0, "lost", "x") for row in samples([1] * 3, parent="q", line=2)]

    def rows():
        yield from samples([1, 1])
        yield from lost
        raise AssertionError("read to the end")

    stream = compile_row_step(Vote(), 0).apply(rows())
    assert codes([next(stream) for _ in range(5)]) == ["", "", "lost", "lost", "lost"]


def test_the_same_as_counting_by_hand():
    source = random.Random(0)
    for _ in range(300):
        groups = [[source.choice([None, 1, 2, 3]) for _ in range(source.randrange(1, 6))] for _ in range(4)]
        rows = [row for n, group in enumerate(groups) for row in samples(group, parent=f"p{n}", line=n + 1)]
        expected = []
        for group in groups:
            given = [answer for answer in group if answer is not None]
            most = max(map(given.count, given), default=0)
            winner = next((answer for answer in given if given.count(answer) == most), None)
            expected += [answer == winner and winner is not None for answer in group]
        assert [code == "" for code in codes(vote(rows))] == expected
