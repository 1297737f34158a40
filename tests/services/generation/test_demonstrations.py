"""Which demonstrations are chosen."""

from collections import Counter

import numpy as np
import pytest

from logitcask_schemas.api.generation_steps import Demonstrations
from logitcask_services.generation.demonstrations import DemonstrationChooser
from logitcask_services.generation.rows import Refusal
from tests.support.services.generation import row, rows


def chooser(candidates, seed=0, **wanted):
    return DemonstrationChooser(wanted=Demonstrations(**wanted), candidates=candidates, job_seed=seed)


def lines(chosen):
    return [entry.line for entry in chosen]


def test_the_first_are_those_of_the_corpus_less_the_row_itself():
    own = rows(6)
    assert lines(chooser(own, k=3).choose(own[1], where="")) == [1, 3, 4]
    assert lines(chooser(own, k=3).choose(own[5], where="")) == [1, 2, 3]
    assert lines(chooser(own, k=3, corpus_id="other").choose(own[1], where="")) == [1, 2, 3], "another corpus's line 2"


def test_seeded_ones_are_stable_all_different_and_never_the_row():
    own = rows(9)
    first = [chooser(own, k=8, choose="seeded").choose(entry, where="") for entry in own]
    assert first == [chooser(own, k=8, choose="seeded").choose(entry, where="") for entry in own]
    for entry, chosen in zip(own, first, strict=True):
        assert sorted(lines(chosen)) == [line for line in range(1, 10) if line != entry.line]
    assert len({tuple(lines(chosen)) for chosen in first}) == 9
    assert first != [chooser(own, seed=1, k=8, choose="seeded").choose(entry, where="") for entry in own]


def test_seeded_ones_are_drawn_evenly():
    candidates, counts = rows(10), Counter()
    for at in range(2000):
        asked = row(1000 + at, {"question": "x"})
        counts.update(lines(chooser(candidates, k=2, choose="seeded", corpus_id="c").choose(asked, where="")))
    expected = 2000 * 2 / 10
    assert set(counts) == set(range(1, 11))
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 27.9, "chi-square, 9, p = 0.001"


def test_nearest_ones_share_words_and_ties_go_to_the_first():
    texts = ["the cat sat", "a dog ran", "The CAT ran", "the cat sat", "nothing alike", "the cat sat"]
    own = [row(at + 1, {"question": text}) for at, text in enumerate(texts)]
    near = chooser(own, k=3, choose="bm25")
    assert lines(near.choose(own[3], where="")) == [1, 6, 3]
    assert lines(near.choose(row(99, {"question": "zebra"}), where="")) == [1, 2, 3], "no word is shared"
    assert lines(near.choose(row(99, {"question": ""}), where="")) == [1, 2, 3]


def test_nearest_ones_are_those_of_the_formula():
    """BM25 written out, in float64, over random words."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 30, rng.integers(1, 12))) for _ in range(200)]
    candidates = [row(at + 1, {"question": text}) for at, text in enumerate(texts)]
    near = chooser(candidates, k=5, choose="bm25", corpus_id="c")
    split = [text.split() for text in texts]
    mean = np.mean([len(words) for words in split])
    holding = Counter(word for words in split for word in set(words))

    def score(query, words):
        total = 0.0
        for word in query:
            idf = np.log(1 + (len(split) - holding[word] + 0.5) / (holding[word] + 0.5))
            often = words.count(word)
            total += idf * often / (often + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        return total

    for text in texts[:20]:
        chosen = near.choose(row(0, {"question": text}), where="")
        scores = np.array([score(text.split(), words) for words in split])
        got = [scores[entry.line - 1] for entry in chosen]
        assert got == sorted(got, reverse=True) or np.allclose(got, sorted(got, reverse=True), rtol=1e-5)
        assert np.allclose(got, np.sort(scores)[::-1][:5], rtol=1e-5)


def test_candidates_without_words_are_last():
    candidates = [row(1, {}), row(2, {"question": 5}), row(3, {"question": "cat"})]
    assert lines(chooser(candidates, k=2, choose="bm25", corpus_id="c").choose(candidates[2], where="")) == [3, 1]
    empty = [row(1, {}), row(2, {})]
    assert lines(chooser(empty, k=2, choose="bm25", corpus_id="c").choose(candidates[2], where="")) == [1, 2]


def test_those_that_a_field_names():
    candidates = rows(5)
    asked = row(99, {"best": [candidates[3].id, candidates[0].id, candidates[1].id]})
    assert lines(chooser(candidates, k=2, choose="field", query="best", corpus_id="c").choose(asked, where="")) == [
        4,
        1,
    ]


@pytest.mark.parametrize(
    ("wanted", "fields", "code", "words"),
    [
        ({"k": 5}, {"question": "x"}, "too_few_demonstrations", "5 demonstrations are asked for, and there are 4"),
        ({"k": 5, "choose": "seeded"}, {"question": "x"}, "too_few_demonstrations", "lower k"),
        (
            {"k": 2, "choose": "bm25"},
            {"q": "x"},
            "unknown_field",
            "`question`, by which demonstrations are chosen, is not",
        ),
        ({"k": 2, "choose": "bm25"}, {"question": 5}, "unknown_field", "is a int; expected a text"),
        ({"k": 2, "choose": "field", "query": "best"}, {"best": "x"}, "unknown_field", "expected a list of ids"),
        ({"k": 2, "choose": "field", "query": "best"}, {"best": ["x", "y"]}, "unknown_demonstration", "'x'"),
        ({"k": 2, "choose": "field", "query": "best"}, {"best": []}, "too_few_demonstrations", "names 0"),
    ],
)
def test_refusals(wanted, fields, code, words):
    own = rows(5)
    refusal = chooser(own, **wanted).choose(row(2, fields), where="line 2, step 1 (generate)")
    assert isinstance(refusal, Refusal)
    assert refusal.code == code
    assert refusal.message.startswith("line 2, step 1 (generate): ")
    assert words in refusal.message
