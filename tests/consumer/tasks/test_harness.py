"""Answers by lm-evaluation-harness: those of a dense float64 computation; what a model knows, and what it does not."""

import numpy as np
import pytest
import torch

from logitcask_consumer.report.estimates import share_right
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.tasks.perturbations import DEFAULT_RATES, parse_perturbations
from logitcask_consumer.tasks.questions import Question, TaskError
from logitcask_consumer.tasks.suite import TaskSuite
from tests.support.consumer.cask_builder import tiny_model
from tests.support.consumer.task_sets import (
    STEP,
    dense_choice,
    knowable_questions,
    rewritten,
    save_knowing_model,
    save_task,
)
from tests.support.consumer.text_tokenizers import byte_level, corpus

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def knowing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knowing")
    save_knowing_model(folder)
    return folder


def load(*paths, perturb=None, seed=0):
    perturbations = () if perturb is None else parse_perturbations(perturb)
    return TaskSuite.load(paths, perturbations, seed=seed, batch_tokens=512, run_code=False)


def answers_of(folder, *paths, **options):
    return load(*paths, **options).answers_of("model", folder, CPU)


def prose_questions(count):
    """Pieces of prose with choices of several words and of different lengths."""
    words = [word for text in corpus() for word in text.split() if word.isascii()]
    rng = np.random.default_rng(3)

    def piece(length):
        start = int(rng.integers(len(words) - length))
        return " ".join(words[start : start + length])

    return [
        Question(
            text=f"{number} {piece(int(rng.integers(3, 12)))}",
            choices=tuple(f"{name} {piece(int(rng.integers(1, 5)))}" for name in ("one", "two", "three")),
            answer=int(rng.integers(3)),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("bos", [False, True])
def test_answers_are_those_of_a_dense_float64_computation(tmp_path, bos):
    tokenizer = byte_level(bos=bos)
    tiny_model(layers=2, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    questions = prose_questions(40)
    path = save_task(tmp_path / "set", questions, name="prose", prompt=None)
    right_N = answers_of(tmp_path / "model", path)["prose"].right_N
    model, expected, gaps = load_model(tmp_path / "model").double(), [], []
    for question in questions:
        assert question.choices is not None
        said, gap = dense_choice(model, tokenizer, f"Question: {question.text}\nAnswer:", question.choices)
        expected.append(said == question.answer)
        gaps.append(gap)
    assert min(gaps) > 1e-3, "no answer hangs on rounding"
    assert right_N.tolist() == expected
    assert 0 < right_N.sum() < 40


def test_letters_and_shots_are_in_the_prompt(tmp_path, knowing):
    """The dense computation reads the prompt that the documentation promises."""
    tokenizer = byte_level()
    tiny_model(layers=2, vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    questions = prose_questions(14)
    path = save_task(tmp_path / "set", questions, name="prose", prompt=None, shots=2, lettered=True)

    def listed(question):
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABC", question.choices, strict=True)]
        return "\n".join([f"Question: {question.text}", *lines, "Answer:"])

    shown = "".join(f"{listed(question)} {'ABC'[question.answer]}\n\n" for question in questions[:2])
    model = load_model(tmp_path / "model").double()
    expected = [
        dense_choice(model, tokenizer, shown + listed(question), "ABC")[0] == question.answer
        for question in questions[2:]
    ]
    assert answers_of(tmp_path / "model", path)["prose"].right_N.tolist() == expected


def test_a_model_that_knows_is_right_and_shuffled_answers_fall_to_chance(tmp_path, knowing):
    questions = knowable_questions(200)
    task_file = save_task(tmp_path / "set", questions)
    rng = np.random.default_rng(7)
    shuffled = [
        Question(text=question.text, choices=question.choices, answer=int(rng.integers(4))) for question in questions
    ]
    other = save_task(tmp_path / "set", shuffled, name="shuffled")
    answers = answers_of(knowing, task_file, other)
    assert answers["known"].right_N.all()
    by_chance = share_right(answers["shuffled"].right_N)
    assert by_chance.low is not None
    assert by_chance.high is not None
    assert by_chance.low <= 0.25 <= by_chance.high < 0.4


def test_written_answers_are_compared_whole(tmp_path, knowing):
    questions = knowable_questions(20, choices=None)
    wrong = [
        Question(text=question.text, choices=None, answer=f"{question.answer} w3") if number % 2 else question
        for number, question in enumerate(questions)
    ]
    path = save_task(tmp_path / "set", wrong)
    assert answers_of(knowing, path)["known"].right_N.tolist() == [True, False] * 10


def test_at_rate_zero_nothing_is_asked_again_and_no_answer_changes(tmp_path, knowing):
    path = save_task(tmp_path / "set", knowable_questions(30))
    suite = load(path, perturb=",".join(f"{kind}:0" for kind in DEFAULT_RATES))
    (task,) = suite.tasks
    assert set(task.variants) == set(DEFAULT_RATES)
    assert all(variant.task is None and not variant.changed_N.any() for variant in task.variants.values())
    answers = suite.answers_of("model", knowing, CPU)["known"]
    for right_N in answers.perturbed.values():
        assert np.array_equal(right_N, answers.right_N)


def test_only_questions_that_changed_can_change_their_answer(tmp_path, knowing):
    """The model reads the last word alone: words in another order cost what they move away from there."""
    questions = knowable_questions(60)
    path = save_task(tmp_path / "set", questions)
    suite = load(path, perturb="words:0.3,order,whitespace:1")
    answers = suite.answers_of("model", knowing, CPU)["known"]
    (task,) = suite.tasks
    assert task.variants["words"].task is not None
    asked = task.variants["words"].task.dataset["test"]["question"]
    changed_N = task.variants["words"].changed_N
    assert 0 < changed_N.sum() < 60
    last_words = iter(row.split()[-1] for row in asked)
    expected = []
    for question, changed in zip(questions, changed_N, strict=True):
        last = next(last_words) if changed else question.text.split()[-1]
        assert question.choices is not None
        said = f"w{int(last[1:]) + STEP}"
        # Where no choice is what the model says, all are as likely to it, and the first is taken.
        taken = question.choices.index(said) if said in question.choices else 0
        expected.append(taken == question.answer)
    assert answers.perturbed["words"].tolist() == expected
    assert not all(expected)
    assert task.variants["order"].changed_N.all()
    assert answers.perturbed["order"].all(), "choices are asked one by one, so their order is nothing to this model"
    assert answers.perturbed["whitespace"].all()


def test_the_same_seed_gives_the_same_questions(tmp_path, knowing):
    path = save_task(tmp_path / "set", knowable_questions(30))

    def asked(seed):
        variant = load(path, perturb="words", seed=seed).tasks[0].variants["words"]
        assert variant.task is not None
        return variant.task.dataset["test"]["question"][:]

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_a_model_without_room_is_refused_before_it_is_loaded(tmp_path, knowing, monkeypatch):
    monkeypatch.setattr("logitcask_consumer.tasks.suite.load_reader", lambda *_: pytest.fail("was loaded"))
    long = [
        Question(text=" ".join(["w3"] * 300), choices=("w50", "w51"), answer=0),
        *knowable_questions(10, choices=2),
    ]
    suite = load(save_task(tmp_path / "set", long))
    with pytest.raises(TaskError, match="small takes 256 tokens, but the longest question of the task known needs 300"):
        suite.require_room("small", knowing)
    shorter = load(save_task(tmp_path / "short", knowable_questions(10, choices=None)))
    shorter.require_room("small", knowing)
    path = rewritten(
        save_task(tmp_path / "written", knowable_questions(10, choices=None)),
        {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 251}},
    )
    with pytest.raises(TaskError, match="needs 257 with its answer"):
        load(path).require_room("small", knowing)
