"""Files of questions: what is read, what is refused in one line, and the task files that are made of them."""

import json

import pytest
import yaml

from logitcask_consumer.tasks.questions import Question, TaskError, read_questions
from logitcask_consumer.tasks.write_task import write_task

TEXT = "How many legs has a spider?"
ROW = {"question": TEXT, "choices": ["six", "eight"], "answer": "eight"}


def saved(path, rows, *, lines=True):
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize(("answer", "number"), [("eight", 1), (1, 1), ("A", 0), (0, 0), ("six", 0)])
def test_an_answer_is_a_choice_its_number_or_its_letter(tmp_path, answer, number, lines):
    path = saved(tmp_path / "q.json", [{**ROW, "answer": answer}] * 10, lines=lines)
    assert read_questions(path)[3] == Question(text=TEXT, choices=("six", "eight"), answer=number)


def test_a_choice_that_reads_like_a_letter_is_meant_before_the_letter(tmp_path):
    path = saved(tmp_path / "q.jsonl", [{"question": "?", "choices": ["B", "A"], "answer": "A"}] * 10)
    assert read_questions(path)[0].answer == 1


def test_answers_to_be_written_are_one_line(tmp_path):
    path = saved(tmp_path / "q.jsonl", [{"question": "2 + 2", "answer": 4}] * 9 + [{"question": "a", "answer": " b "}])
    assert {question.answer for question in read_questions(path)} == {"4", "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "question": " "}, "line 11: `question` must be a text"),
        ({"choices": ["a", "b"], "answer": 0}, "`question` must be a text, got null"),
        ({"question": "a"}, "there is no `answer`"),
        ({**ROW, "choices": "eight"}, "`choices` must be a list of texts"),
        ({**ROW, "choices": ["eight", "eight"]}, "two or more that differ"),
        ({**ROW, "choices": ["eight"]}, "two or more that differ"),
        ({**ROW, "answer": "seven"}, 'its number or its letter, got "seven"'),
        ({**ROW, "answer": 2}, "`answer` is 2, but choices are counted from 0 to 1"),
        ({**ROW, "answer": True}, "got true"),
        ({"question": "a", "answer": "b\nc"}, "a text of one line"),
        ([1], "expected an object"),
        ({"question": "a", "answer": "b"}, "10 of 11 questions have choices"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, row, message):
    with pytest.raises(TaskError) as refused:
        read_questions(saved(tmp_path / "q.jsonl", [*[ROW] * 10, row]))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(TaskError, match="cannot be read"):
        read_questions(tmp_path / "gone.json")
    with pytest.raises(TaskError, match="holds 9 questions; at least 10"):
        read_questions(saved(tmp_path / "few.jsonl", [ROW] * 9))
    (tmp_path / "no.jsonl").write_text("question: a\n")
    with pytest.raises(TaskError, match=r"no\.jsonl, line 1: expected JSON"):
        read_questions(tmp_path / "no.jsonl")
    for number, text in enumerate(("[" * 100_000, f'{{"question": {"9" * 5000}}}')):
        (tmp_path / f"{number}.jsonl").write_text(text)
        with pytest.raises(TaskError, match=rf"{number}\.jsonl.*: expected JSON"):
            read_questions(tmp_path / f"{number}.jsonl")


def test_a_task_lies_beside_its_data(tmp_path):
    questions = [Question(text=f"q{n}", choices=("a", "b"), answer=n % 2) for n in range(13)]
    path = write_task(questions, tmp_path / "out", name="mine", shots=3)
    config = yaml.safe_load(path.read_text())
    assert config["dataset_kwargs"]["data_files"] == {"test": "mine.jsonl", "train": "mine.shots.jsonl"}
    asked = [json.loads(line) for line in (path.parent / "mine.jsonl").read_text().splitlines()]
    shown = [json.loads(line) for line in (path.parent / "mine.shots.jsonl").read_text().splitlines()]
    assert [row["question"] for row in (*shown, *asked)] == [f"q{n}" for n in range(13)]
    assert asked[0] == {"question": "q3", "choices": ["a", "b"], "answer": 1}
    assert (config["num_fewshot"], config["fewshot_config"]) == (3, {"sampler": "first_n"})


def test_a_task_that_cannot_be_is_refused(tmp_path):
    questions = [Question(text=f"q{n}", choices=None, answer="a") for n in range(12)]
    for options, message in (
        ({"name": "my task"}, "letters, digits, - and _"),
        ({"name": "a", "shots": 3}, "at least 10 must be left"),
        ({"name": "a", "lettered": True}, "letters need questions with choices"),
    ):
        with pytest.raises(TaskError, match=message):
            write_task(questions, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_task_within_a_cask_is_refused(tmp_path):
    (tmp_path / "cask.json").write_text("{}")
    questions = [Question(text=f"q{n}", choices=None, answer="a") for n in range(12)]
    for folder in (tmp_path, tmp_path / "tasks"):
        with pytest.raises(TaskError, match=r"lies in the cask .*, which holds nothing else"):
            write_task(questions, folder, name="mine")
    assert [path.name for path in tmp_path.iterdir()] == ["cask.json"]
