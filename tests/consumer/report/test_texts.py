"""What models write after prompts: against counting by hand, and against the library rouge_score."""

import json

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import GenerationConfig

from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.estimates import share_right
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.report.texts import (
    Prompt,
    WrittenText,
    ends_in_loop,
    n_grams,
    prompts_of,
    recorded_texts,
    score_texts,
    write_texts,
)
from logitcask_consumer.student.loading import load_model
from logitcask_schemas.cask import Cask
from tests.support.consumer.cask_builder import (
    build_cask,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)

DOCUMENTS = random_documents(10, low=26, high=50, seed=3)
ANSWERS = [[(8 + n, 14 + n)] if n % 3 else [] for n in range(9)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    teacher = save_teacher(folder / "teacher")
    build_cask(folder / "held", teacher, DOCUMENTS, answers=[*ANSWERS, None])
    build_cask(folder / "plain", teacher, DOCUMENTS)
    tiny_model(seed=9).save_pretrained(folder / "student")
    tiny_tokenizer().save_pretrained(folder / "student")
    return folder


def text_of(text, ids=(), *, ended=True):
    return WrittenText(ids=list(ids), text=text, ended=ended)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7] * 16, True),
        ([7] * 15, False),
        ([*range(20), *[1, 2, 3, 4, 5, 6] * 3], True),
        ([*range(20), *[1, 2, 3, 4, 5, 6] * 2], False),
        ([*[1, 2, 3, 4, 5, 6] * 3, 9], False),
        ([*range(30, 60)] * 3, True),
        (range(100), False),
        ([], False),
    ],
)
def test_a_loop_is_a_piece_three_times_at_the_end(ids, expected):
    assert ends_in_loop(list(ids)) is expected


def value_of(scores, name):
    """Of a figure that is there."""
    figure = scores[name]
    assert figure is not None
    return figure["value"]


def test_figures_of_texts_by_hand():
    texts = [text_of("the cat sat", [1, 2, 3]), text_of("a a a a", [4] * 20, ended=False)]
    references = [text_of("the cat lay down"), text_of("b b")]
    scores = score_texts(texts, references, seed=0)
    assert value_of(scores, "rouge_l") == pytest.approx((2 * 2 / (3 + 4) + 0) / 2)
    assert value_of(scores, "distinct_1") == pytest.approx((3 + 1) / (3 + 4))
    assert value_of(scores, "distinct_2") == pytest.approx((2 + 1) / (2 + 3))
    assert [value_of(scores, name) for name in ("loops", "ended", "tokens")] == [0.5, 0.5, 11.5]
    assert [scores["loops"], scores["ended"]] == [share_right(np.array([True, False])).as_dict()] * 2
    always = score_texts(texts[1:] * 4, None, seed=0)["loops"]
    assert always is not None
    assert always["low"] == pytest.approx(0.5101, abs=1e-4), "not certain after four: Wilson's interval"
    assert n_grams("One, two: one.", 2) == [("one", "two"), ("two", "one")]


def test_texts_without_words_have_no_variety_to_speak_of():
    scores = score_texts([text_of("..."), text_of("")], None, seed=0)
    assert (scores["distinct_1"], scores["distinct_2"]) == (None, None)
    assert "rouge_l" not in scores
    assert value_of(score_texts([text_of("..."), text_of("a b")], None, seed=0), "distinct_1") == 1.0


def test_rouge_is_that_of_the_library_with_its_interval():
    rng, scorer = np.random.default_rng(0), RougeScorer(["rougeL"])
    words = np.array(["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog"])
    pairs = [[" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(2)] for _ in range(60)]
    expected = np.array([scorer.score(reference, text)["rougeL"].fmeasure for text, reference in pairs])
    scores = score_texts([text_of(text) for text, _ in pairs], [text_of(other) for _, other in pairs], seed=0)
    found = scores["rouge_l"]
    assert found is not None
    assert found["value"] == pytest.approx(expected.mean(), abs=1e-6)
    spread = 1.96 * expected.std(ddof=1) / np.sqrt(len(expected))
    assert (found["low"], found["high"]) == pytest.approx(
        (expected.mean() - spread, expected.mean() + spread), abs=0.2 * spread
    )


def test_prompts_are_what_stands_before_the_first_answer(place):
    cask = Cask.open(place / "held")
    prompts = prompts_of([cask], 100, longest=None, seed=0)
    assert len(prompts) == sum(bool(ranges) for ranges in ANSWERS)
    ids = [tuple(document) for document in DOCUMENTS]
    for prompt in prompts:
        number = next(n for n, document in enumerate(ids) if document[: len(prompt.ids)] == tuple(prompt.ids))
        ((start, stop),) = ANSWERS[number]
        assert (len(prompt.ids), tuple(prompt.answer)) == (start, ids[number][start:stop])
    few = prompts_of([cask], 2, longest=None, seed=0)
    assert [prompt.document for prompt in few] == [
        prompt.document for prompt in prompts_of([cask], 2, longest=None, seed=0)
    ]
    assert all(len(prompt.ids) <= 10 for prompt in prompts_of([cask], 100, longest=10, seed=0))
    for casks, longest in ([Cask.open(place / "plain")], None), ([cask], 3):
        with pytest.raises(ReportError, match="none of the 10 documents has an answer"):
            prompts_of(casks, 5, longest=longest, seed=0)


def test_texts_are_greedy(place):
    model, prompts = load_model(place / "student"), prompts_of([Cask.open(place / "held")], 3, longest=None, seed=0)
    texts = write_texts(model, tiny_tokenizer(), prompts)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = list(prompt.ids)
        for token in [*text.ids, *([1] if text.ended else [])]:
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
        assert text.ended or len(text.ids) == 32


def test_the_report_holds_what_was_written(place, tmp_path):
    models = (("student", place / "student"), ("same", place / "teacher"))
    config = ReportConfig(casks=(place / "held",), models=models, output=tmp_path / "out", generate=4)
    document = make_report(config)
    assert document["generation"]["prompts"] == 4
    for model in document["models"]:
        assert 0 <= model["generation"]["rouge_l"]["value"] <= 1
        assert model["generation"]["tokens"]["value"] > 0
    assert "rouge_l" not in document["generation"]["recorded"]
    assert "| ROUGE-L with the recorded answer |" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == document


def test_a_model_whose_texts_would_never_end_is_refused_before_work(place, tmp_path):
    model, tokenizer = tiny_model(seed=9, eos_token_id=None), tiny_tokenizer()
    tokenizer.eos_token = None
    model.generation_config = GenerationConfig()
    model.save_pretrained(tmp_path / "endless")
    tokenizer.save_pretrained(tmp_path / "endless")
    config = ReportConfig(
        casks=(place / "held",), models=(("endless", tmp_path / "endless"),), output=tmp_path / "out", generate=4
    )
    with pytest.raises(ReportError, match="neither the generation config of endless nor its tokenizer names a token"):
        make_report(config)
    assert not config.output.exists()


def test_casks_without_answers_are_refused_before_any_model_is_opened(place, tmp_path):
    build_cask(tmp_path / "other", load_model(place / "teacher"), DOCUMENTS, weights_digest="1" * 64)
    models, said = (("student", place / "student"),), list[str]()
    for casks in ((place / "plain",), (place / "held", tmp_path / "other")):  # of the second teacher
        config = ReportConfig(casks=casks, models=models, output=tmp_path / "out", generate=4)
        with pytest.raises(ReportError, match="--generate: none of the 10 documents has an answer behind a prompt"):
            make_report(config, say=said.append)
    assert not said
    assert not config.output.exists()


def test_a_recorded_answer_has_no_end_of_its_turn_as_a_written_text_has_none():
    class Tokenizer:
        """1 ends a turn, 2 is a line break."""

        all_special_ids = (1,)

        def decode(self, ids, skip_special_tokens=False):
            return "".join({1: "" if skip_special_tokens else "<end>", 2: "\n"}.get(each, "word ") for each in ids)

    for answer, kept in (([7, 8, 1, 2], 2), ([7, 8, 1], 2), ([7, 8, 2], 3), ([7, 8], 2), ([1, 2], 0), ([2], 1)):
        [text] = recorded_texts(Tokenizer(), [Prompt(document=0, ids=[5], answer=answer)])
        assert text.ids == answer[:kept]
