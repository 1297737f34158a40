"""Bounds on rows."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from logitcask_schemas.api.generation_steps import Keep
from logitcask_services.engines.generator import Finish
from logitcask_services.generation.row_steps import compile_row_step
from logitcask_services.generation.rows import Dropped, Row, Staged, Written


def written(tokens: int = 4, finish: Finish = "stop", logprob: float = -2.0, sample: int = 0) -> Written:
    return Written(
        token_ids=list(range(tokens)), text="text", finish=finish, logprob=logprob, sample=sample, seed=0,
        template="t", template_sha256="0", prompt_ids=lambda: [0],
    )  # fmt: skip


def row(fields: dict[str, object] | None = None, parent: str = "p", **of: Any) -> Row:
    return Row(
        id="i", parent=parent, line=3, fields={"output": "text", **(fields or {})}, written={"output": written(**of)}
    )


def keep(rows: Sequence[Staged], **options: Any) -> list[Staged]:
    return list(compile_row_step(Keep(**options), 6).apply(iter(rows)))


def code(given: Row, **options: Any) -> str | None:
    (result,) = keep([given], **options)
    return result.code if isinstance(result, Dropped) else None


@pytest.mark.parametrize(
    ("of", "options", "expected"),
    [
        ({}, {}, None),
        ({"finish": "stop"}, {"finish": "stop"}, None),
        ({"finish": "length"}, {"finish": "stop"}, "unfinished"),
        ({"finish": "stop"}, {"finish": "length"}, "ended_early"),
        ({"tokens": 4}, {"min_tokens": 4}, None),
        ({"tokens": 3}, {"min_tokens": 4}, "too_short"),
        ({"tokens": 0}, {"min_tokens": 1}, "too_short"),
        ({"tokens": 4}, {"max_tokens": 4}, None),
        ({"tokens": 5}, {"max_tokens": 4}, "too_long"),
        ({"tokens": 4, "logprob": -2.0}, {"min_mean_logprob": -0.5}, None),
        ({"tokens": 4, "logprob": -2.1}, {"min_mean_logprob": -0.5}, "improbable"),
        ({"tokens": 4, "logprob": math.nan}, {"min_mean_logprob": -0.5}, "improbable"),
        ({"tokens": 0, "logprob": 0.0}, {"min_mean_logprob": -0.5}, None),
        ({}, {"matches": "^te"}, None),
        ({}, {"matches": "xt$"}, None),
        ({}, {"matches": "^xt"}, "no_match"),
    ],
)
def test_bounds(of, options, expected):
    assert code(row(**of), **options) == expected


def test_messages_say_what_was_expected_and_got():
    (result,) = keep([row(tokens=3, sample=2)], min_tokens=4)
    assert (result.step, result.message) == (6, "line 3, sample 2: expected at least 4 tokens in `output`, got 3")
    (result,) = keep([row(logprob=-4.0)], min_mean_logprob=-0.5)
    assert result.message.endswith(
        "expected a mean log-probability of at least -0.5 nats per token in `output`, got -1"
    )


@pytest.mark.parametrize(
    "bound", [{"finish": "stop"}, {"min_tokens": 1}, {"max_tokens": 9}, {"min_mean_logprob": -1.0}]
)
def test_bounds_of_tokens_need_a_written_field(bound):
    assert code(row({"label": "x"}), of="label", **bound) == "not_written"


@pytest.mark.parametrize("value", [None, 5, ["text"]])
def test_only_text_matches(value):
    assert code(row({"output": value}), matches=".") == "no_match"


@pytest.mark.parametrize(
    ("a", "b", "by", "expected"),
    [
        (2, 1, 0.0, None),
        (1, 1, 0.0, "not_more"),
        (1, 2, 0.0, "not_more"),
        (2, 1, 1.0, None),
        (0.3, 0.2, 0.1, None),
        (0.3, 0.2, 0.11, "not_more"),
        ("1,000", "999", 0.0, None),
        (1, 2, -1.0, None),
        (-1.5, -2.5, 1.0, None),
        (None, 1, 0.0, "no_number"),
        (1, None, 0.0, "no_number"),
        ("x", 1, 0.0, "no_number"),
        (math.nan, 1, 0.0, "no_number"),
        (math.inf, 1, 0.0, "no_number"),
    ],
)
def test_more_than(a, b, by, expected):
    assert code(row({"a": a, "b": b}), more="a", than="b", by=by) == expected


def test_more_than_an_absent_field():
    (result,) = keep([row({"a": 1})], more="a", than="b")
    assert result.message == "line 3, sample 0: expected a number in `b`, got None"


@pytest.mark.parametrize("by", [math.nan, math.inf])
def test_by_must_be_finite(by):
    with pytest.raises(ValueError, match="finite number"):
        keep([], more="a", than="b", by=by)


def test_matches_must_be_a_pattern():
    with pytest.raises(ValueError, match="step 6, matches: '\\[' is no regular expression"):
        keep([], matches="[")


def codes(result: Sequence[Staged]) -> list[str]:
    return [staged.code if isinstance(staged, Dropped) else "" for staged in result]


def test_best_of_the_samples_of_each_row():
    rows = [row({"score": s}, parent=p) for p, s in [("p", 1), ("p", 3), ("p", 2), ("q", -5), ("q", -4)]]
    assert codes(keep(rows, more="score", best=1)) == ["not_best", "", "not_best", "not_best", ""]
    assert codes(keep(rows, more="score", best=2)) == ["not_best", "", "", "", ""]
    assert "among the 1 largest of 3 samples, got 1" in keep(rows, more="score", best=1)[0].message


def test_of_equally_good_samples_the_first_stay():
    rows = [row({"score": s}) for s in [1, 2, 2.0, "2"]]
    assert codes(keep(rows, more="score", best=2)) == ["not_best", "", "", "not_best"]


def test_the_best_are_chosen_among_those_within_the_other_bounds():
    rows = [row({"a": 9, "b": 9}), row({"a": None, "b": 0}), row({"a": 5, "b": 1}), row({"a": 4, "b": 1})]
    lost = row().drop(0, "lost", "x")
    assert codes(keep([rows[0], lost, *rows[1:]], more="a", than="b", best=1)) == [
        "not_more", "lost", "no_number", "", "not_best",
    ]  # fmt: skip
