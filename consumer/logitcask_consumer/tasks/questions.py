"""A set of questions in a JSON or JSONL file: `question`, `answer` and, for multiple choice, `choices`.

    {"question": "How many legs has a spider?", "choices": ["six", "eight"], "answer": "eight"}
    {"question": "How many legs has a spider?", "answer": "eight"}

All questions of a file are of one kind. The answer of a choice is its text, its number counted from 0, or, where no
choice reads so, its letter. Other keys are left out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from logitcask_schemas.errors import LogitcaskError

LEAST_QUESTIONS: Final = 10
"""Of fewer, an accuracy says nothing: its interval is half the scale wide."""
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def names_a_choice(answer: int | str, choices: Sequence[str]) -> bool:
    """Whether a task's answer is the number of one of the choices, from 0, or its text."""
    return 0 <= answer < len(choices) if isinstance(answer, int) else answer in choices


class TaskError(LogitcaskError, ValueError):
    """A file of questions or tasks cannot be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question and what the right answer is."""

    text: str
    choices: tuple[str, ...] | None
    """None where the answer is to be written."""
    answer: int | str
    """Number of the right choice, from 0; without choices the text."""

    @classmethod
    def of(cls, row: Any, *, where: str) -> Self:
        """A question of a row.

        Args:
            row: of JSON.
            where: it stands, for messages.

        Raises:
            TaskError: a key is missing, or its value is of no use.
        """
        if not isinstance(row, dict):
            raise TaskError(f"{where}: expected an object with question and answer, got {_shown(row)}")
        text, choices = row.get("question"), row.get("choices")
        if not isinstance(text, str) or not text.strip():
            raise TaskError(f"{where}: `question` must be a text, got {_shown(text)}")
        if "answer" not in row:
            raise TaskError(f"{where}: there is no `answer`")
        if choices is None:
            return cls(text=text, choices=None, answer=_text_answer(row["answer"], where))
        if not isinstance(choices, list) or not all(isinstance(each, str) and each.strip() for each in choices):
            raise TaskError(f"{where}: `choices` must be a list of texts, got {_shown(choices)}")
        if len(set(choices)) != len(choices) or len(choices) < 2:
            raise TaskError(f"{where}: `choices` must be two or more that differ, got {_shown(choices)}")
        return cls(text=text, choices=tuple(choices), answer=_right_choice(row["answer"], choices, where))

    def row(self) -> dict[str, Any]:
        """JSON form, with the number of the right choice."""
        choices = {} if self.choices is None else {"choices": list(self.choices)}
        return {"question": self.text, **choices, "answer": self.answer}


def read_questions(path: Path) -> list[Question]:
    """The questions of a file: a JSON array, or a JSON object in every line.

    Raises:
        TaskError: the file cannot be read, a row does not fit, there are too few, or only some have choices.
    """
    questions = [Question.of(row, where=where) for where, row in _rows(path)]
    if len(questions) < LEAST_QUESTIONS:
        raise TaskError(
            f"{path} holds {len(questions)} questions; at least {LEAST_QUESTIONS} are needed to tell an accuracy"
        )
    with_choices = sum(question.choices is not None for question in questions)
    if with_choices not in (0, len(questions)):
        raise TaskError(
            f"{path}: {with_choices} of {len(questions)} questions have choices; put those without into a file of "
            "their own"
        )
    return questions


def _rows(path: Path) -> list[tuple[str, Any]]:
    """Each row, and where it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as a file of questions: {error}") from error
    if text.lstrip().startswith("["):
        rows: list[Any] = _parsed(text, str(path))
        return [(f"{path}, question {number}", row) for number, row in enumerate(rows, start=1)]
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), start=1)]
    return [(where, _parsed(line, where)) for where, line in lines if line.strip()]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, and lists in lists
        raise TaskError(f"{where}: expected JSON, an array or an object in every line: {error}") from error


def _right_choice(answer: Any, choices: list[str], where: str) -> int:
    """Number of the right choice."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return answer
        raise TaskError(f"{where}: `answer` is {answer}, but choices are counted from 0 to {len(choices) - 1}")
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        letters = LETTERS[: len(choices)]
        if len(answer) == 1 and answer in letters:
            return letters.index(answer)
    raise TaskError(f"{where}: `answer` must be one of the choices, its number or its letter, got {_shown(answer)}")


def _text_answer(answer: Any, where: str) -> str:
    """The text to be written; numbers are written as JSON does."""
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return json.dumps(answer)
    if isinstance(answer, str) and answer.strip() and "\n" not in answer.strip():
        return answer.strip()
    raise TaskError(f"{where}: `answer` must be a text of one line, or a number, got {_shown(answer)}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
