"""ROUGE-L and what is too like what came before, against the library rouge_score."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

import logitcask_services
from logitcask_schemas.api.generation_steps import Dedupe
from logitcask_schemas.rouge_l import rouge_l, words_of
from logitcask_services.generation.rouge_l import RougeIndex
from logitcask_services.generation.row_steps import compile_row_step
from logitcask_services.generation.rows import Dropped, Row, Staged

SCORER = RougeScorer(["rougeL"], use_stemmer=False)
ROUNDING = 1e-9
"""The library computes in floating point; a threshold is never this near to a fraction of small numbers, or is one."""


def library(a: str, b: str) -> float:
    return SCORER.score(a, b)["rougeL"].fmeasure


def over(f1: float, threshold: float) -> bool:
    return f1 > 1 - ROUNDING if threshold == 1 else f1 > threshold + ROUNDING


def stayed_by_brute_force(texts: Sequence[str], threshold: float) -> list[bool]:
    """Every text against every one that stayed."""
    stayed: list[str] = []
    result = []
    for text in texts:
        result.append(not any(over(library(text, other), threshold) for other in stayed))
        if result[-1]:
            stayed.append(text)
    return result


def dedupe(texts: Sequence[object], threshold: float) -> list[Staged]:
    rows = [Row(id=str(n), parent=str(n), line=n + 1, fields={"output": text}) for n, text in enumerate(texts)]
    return list(compile_row_step(Dedupe(rouge_l=threshold), 2).apply(iter(rows)))


def stayed(texts: Sequence[object], threshold: float) -> list[bool]:
    return [isinstance(staged, Row) for staged in dedupe(texts, threshold)]


few_words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "the", "X9"]), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(few_words, max_size=12), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0]))
def test_the_same_rows_go_as_by_brute_force(texts, threshold):
    assert stayed(texts, threshold) == stayed_by_brute_force(texts, threshold)


@given(st.lists(few_words, max_size=12), few_words, st.floats(0, 1))
def test_the_nearest_is_the_largest_of_all_and_the_first_of_equals(texts, text, threshold):
    index = RougeIndex(threshold)
    assert [index.add(other) for other in texts] == list(range(len(texts)))
    scores = [rouge_l(text, other) for other in texts]
    exact = Fraction(repr(threshold))
    found = [score for score in scores if score > exact or (exact == score == 1)]
    nearest = index.nearest(text)
    if found:
        assert (nearest.f1, nearest.number) == (max(found), scores.index(max(found)))
    else:
        assert nearest is None


@given(few_words | st.text(st.characters(max_codepoint=127)), few_words | st.text(st.characters(max_codepoint=127)))
def test_rouge_l_is_the_librarys(a, b):
    if words_of(a) or words_of(b):
        assert float(rouge_l(a, b)) == pytest.approx(library(a, b), abs=1e-12)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_real_texts(threshold):
    folder = Path(logitcask_services.__file__).parent
    lines = [line.strip() for path in sorted(folder.glob("corpora/*.py")) for line in path.read_text().splitlines()]
    texts = [line for line in lines if len(line.split()) > 3 and line.isascii()][:400]
    expected = stayed_by_brute_force(texts, threshold)
    assert 10 < sum(expected) < len(texts)
    assert stayed(texts, threshold) == expected


def test_random_texts_with_frequent_and_rare_words():
    random = np.random.default_rng(0)
    chances = 1 / np.arange(1, 301)
    texts = [" ".join(f"w{word}" for word in random.choice(300, random.integers(3, 25), p=chances / chances.sum()))
             for _ in range(250)]  # fmt: skip
    # Some are near copies of others.
    for copy in range(50):
        words = texts[copy].split()
        words[random.integers(len(words))] = "new"
        texts.append(" ".join(words))
    expected = stayed_by_brute_force(texts, 0.7)
    assert 20 < expected.count(False) < 100
    assert stayed(texts, 0.7) == expected


def test_a_negative_control_an_index_that_compares_less_is_found_out():
    class Careless(RougeIndex):
        def _needed_at_least(self, m: int) -> int:
            return m

    careless, index = Careless(0.5), RougeIndex(0.5)
    for one in (careless, index):
        one.add("a b c d")
    assert index.nearest("x a b c") is not None
    assert careless.nearest("x a b c") is None


def test_seven_tenths_is_not_over_seven_tenths():
    a = "a b c d e f g h i j"
    assert stayed([a, "a b c d e f g x y z"], 0.7) == [True, True]
    assert stayed([a, "a b c d e f g h y z"], 0.7) == [True, False]


def test_one_means_equal_words():
    texts = ["Write a poem.", "write A POEM", "Write a poem now", "poem a write", "Write  a\npoem!"]
    assert stayed(texts, 1.0) == [True, False, True, True, False]


def test_zero_means_no_word_in_common():
    assert stayed(["a b", "b c", "c d", "e"], 0.0) == [True, False, True, True]


def test_only_rows_that_stayed_are_compared_with():
    # The second is like the first and goes; the third is like the second alone.
    texts = ["a b c d e f g h", "a b c d e f x y", "c d e f x y z w"]
    assert rouge_l(texts[1], texts[2]) == Fraction(3, 4)
    assert rouge_l(texts[0], texts[2]) == Fraction(1, 2)
    assert stayed(texts, 0.7) == [True, False, True]


def test_texts_without_words_are_like_their_equals_alone():
    assert stayed(["", "!!", "", " ", "!! ", "?", "a"], 0.7) == [True, True, False, False, False, True, True]
    assert stayed(["", ""], 1.0) == [True, False]


def test_other_scripts_are_told_apart():
    # rouge_score itself sees no word in these, or "python" alone.
    assert stayed(["写一首诗", "写一首诗。", "解释相对论"], 0.7) == [True, False, True]
    assert stayed(["用 Python 排序", "学习 Python 的历史"], 0.7) == [True, True]
    assert words_of("Café 42!") == ["caf", "é", "42"]


def test_null_stays_and_other_values_are_compared_as_json():
    assert stayed([None, None, 12, 12, ["a", "b"], ["a", "b"]], 0.7) == [True, True, True, False, True, False]


def test_the_message_names_the_earlier_row():
    _, _, result = dedupe(["something else", "Write a short poem", "Write a short poem now"], 0.7)
    assert isinstance(result, Dropped)
    assert (result.step, result.code) == (2, "duplicate")
    assert result.message == (
        "line 3: expected a ROUGE-L of at most 0.7 with the `output` of every earlier row, "
        "got 0.889 with that of line 2: 'Write a short poem now'"
    )


def test_dropped_rows_are_not_compared_with():
    row = Row(id="a", parent="a", line=1, fields={"output": "Write a poem"})
    dropped = row.drop(0, "code", "message")
    assert list(compile_row_step(Dedupe(), 1).apply(iter([dropped, row]))) == [dropped, row]


def test_a_step_forgets_between_streams():
    row = Row(id="a", parent="a", line=1, fields={"output": "Write a poem"})
    step = compile_row_step(Dedupe(), 1)
    assert [list(step.apply(iter([row]))) for _ in range(2)] == [[row], [row]]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_thresholds_that_are_none(threshold):
    with pytest.raises(ValueError, match="expected a threshold of ROUGE-L from 0 to 1"):
        RougeIndex(threshold)
