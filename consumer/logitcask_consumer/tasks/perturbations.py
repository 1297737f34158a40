"""Questions made worse by rule, so that their right answers stay: typing errors, case, order, marks and blanks.

Every change is drawn by a generator of its own, of the seed, the kind and the question's text: which questions stand
beside it, and in which order, changes nothing. Digits stay, as a question with another number has another answer.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from logitcask_consumer.tasks.questions import TaskError, names_a_choice
from logitcask_schemas.errors import OptionError

_WORD: Final = re.compile(r"[^\W\d_]+")
_LONG_WORD: Final = re.compile(r"[^\W\d_]{4,}")
# A mark beside a digit may be part of a number or a formula, and a dash between blanks is a minus.
_MARK: Final = re.compile(r"(?<!\d)[.,;:!?'\"()\[\]](?!\d)|(?<=[^\W\d_])-(?=[^\W\d_])")
_BLANK: Final = re.compile(r"(?<=\S) (?=\S)")
Rule = Callable[[str, float, random.Random], str]


class PerturbationError(OptionError, ValueError):
    """A perturbation that was asked for is not known, or its rate is no share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Names of the columns of a task's data that perturbations change, `metadata: fields:` of its file."""

    question: str
    choices: str | None = None
    answer: str | None = None
    """Number of the right choice, or its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """A kind of change, and how often it is made."""

    kind: str
    rate: float
    """Share of the places where it could be made: words, marks, blanks; of `order` the share of the questions."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `KIND` or `KIND:RATE`.

        Raises:
            PerturbationError: there is no such kind, or the rate is not from 0 to 1.
        """
        kind, colon, written = text.strip().partition(":")
        if kind not in DEFAULT_RATES:
            raise PerturbationError(f"there is no perturbation {kind!r}, only {', '.join(DEFAULT_RATES)}")
        if not colon:
            return cls(kind=kind, rate=DEFAULT_RATES[kind])
        try:
            rate = float(written)
        except ValueError as error:
            raise PerturbationError(f"the rate of {text!r} must be a number from 0 to 1") from error
        if not 0 <= rate <= 1:
            raise PerturbationError(f"the rate of {text!r} must be from 0 to 1")
        return cls(kind=kind, rate=rate)

    def applies_to(self, fields: Fields) -> bool:
        """Whether questions with these columns can be changed so."""
        return self.kind != "order" or (fields.choices is not None and fields.answer is not None)

    def of(self, row: Mapping[str, Any], fields: Fields, *, seed: int) -> dict[str, Any]:
        """The row with its question changed; equal to it where no change was drawn.

        Args:
            row: of a task's data.
            fields: its columns.
            seed: of the changes.
        """
        text = str(row[fields.question])
        generator = random.Random(f"{seed}/{self.kind}/{text}")
        if self.kind == "order":
            return self._reordered(row, fields, generator)
        return {**row, fields.question: _RULES[self.kind](text, self.rate, generator)}

    def _reordered(self, row: Mapping[str, Any], fields: Fields, generator: random.Random) -> dict[str, Any]:
        """The choices in another order; an answer that is a number follows its choice."""
        assert fields.choices is not None
        assert fields.answer is not None
        choices, answer = list(row[fields.choices]), row[fields.answer]
        if len(choices) < 2 or not names_a_choice(answer, choices):
            raise TaskError(
                f"order: the answer {answer!r} is neither the number, from 0, nor the text of one of {len(choices)} "
                "choices, so it cannot follow its choice; leave `order` out, or name others in `metadata: fields`"
            )
        if generator.random() >= self.rate:
            return dict(row)
        order = list(range(len(choices)))
        while order == sorted(order):
            generator.shuffle(order)
        moved = order.index(answer) if isinstance(answer, int) else answer
        return {**row, fields.choices: [choices[number] for number in order], fields.answer: moved}


def parse_perturbations(text: str) -> tuple[Perturbation, ...]:
    """Read perturbations joined by commas.

    Raises:
        PerturbationError: one cannot be read, or a kind is named twice.
    """
    perturbations = tuple(Perturbation.parse(part) for part in text.split(","))
    kinds = [perturbation.kind for perturbation in perturbations]
    if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
        raise PerturbationError(f"the perturbation {twice} is named twice")
    return perturbations


def require_columns(row: Mapping[str, Any], fields: Fields, *, where: str) -> None:
    """Refuse columns that perturbations could not change.

    Args:
        row: the first of a task's data.
        fields: of the task.
        where: the task stands, for messages.

    Raises:
        TaskError: a column is missing or of another type.
    """
    kinds_of_columns: dict[str | None, type | tuple[type, ...]] = {
        fields.question: str,
        fields.choices: list,
        fields.answer: (int, str),
    }
    for name, kind in kinds_of_columns.items():
        if name is not None and not isinstance(row.get(name), kind):
            what = f"is of type {type(row[name]).__name__}" if name in row else "is missing"
            raise TaskError(f"{where}: the column {name!r} of `metadata: fields` {what}; it has {', '.join(row)}")


def _typos(text: str, rate: float, generator: random.Random) -> str:
    """Words of four letters or more with two letters swapped, a letter left out, or one written twice."""

    def mistyped(match: re.Match[str]) -> str:
        word = match[0]
        if generator.random() >= rate:
            return word
        at, way = generator.randrange(1, len(word) - 1), generator.choice(("swap", "drop", "double"))
        if way == "swap" and word[at] != word[at + 1]:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return word[:at] + word[at + 1 :] if way == "drop" else word[:at] + word[at] + word[at:]

    return _LONG_WORD.sub(mistyped, text)


def _case(text: str, rate: float, generator: random.Random) -> str:
    """Words in capitals, and those that are in capitals without."""

    def other(match: re.Match[str]) -> str:
        if generator.random() >= rate:
            return match[0]
        return match[0].lower() if match[0].isupper() else match[0].upper()

    return _WORD.sub(other, text)


def _words(text: str, rate: float, generator: random.Random) -> str:
    """Neighbouring words swapped, none more than once; numbers, signs and what stands between words stay."""
    parts = re.split(r"(\s+)", text)
    at = 0
    while at + 2 < len(parts):
        if parts[at][:1].isalpha() and parts[at + 2][:1].isalpha() and generator.random() < rate:
            parts[at], parts[at + 2] = parts[at + 2], parts[at]
            at += 2
        at += 2
    return "".join(parts)


def _punctuation(text: str, rate: float, generator: random.Random) -> str:
    """Without marks, but for those beside digits and dashes that are no hyphens."""
    return _MARK.sub(lambda match: "" if generator.random() < rate else match[0], text)


def _whitespace(text: str, rate: float, generator: random.Random) -> str:
    """Single blanks between words doubled."""
    return _BLANK.sub(lambda match: "  " if generator.random() < rate else match[0], text)


_RULES: Final[dict[str, Rule]] = {
    "typos": _typos,
    "case": _case,
    "words": _words,
    "punctuation": _punctuation,
    "whitespace": _whitespace,
}
DEFAULT_RATES: Final = {"typos": 0.2, "case": 0.2, "words": 0.2, "punctuation": 1.0, "whitespace": 0.2, "order": 1.0}
"""Kind of each perturbation -> its rate where none is asked for."""
