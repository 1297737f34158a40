"""Word problems made by rule: three one-digit addends in words, the answer, and reasoning that leads to it.

    Tom has three apples, buys four more and finds five. How many apples does Tom have?
    Tom has 3 apples. He buys 4 more: 3 + 4 = 7. He finds 5: 7 + 5 = 12. The answer is 12.

Problems are split three ways by their numbers: to teach a teacher with, to train students on, and to test. No two parts
have the same three numbers, in whatever order, so that neither a teacher's samples nor a student's answers can be known
by heart. A seed draws from all problems of a part, none twice.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, get_args

WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS: Final = range(1, 10)
MARKER: Final = "The answer is"
"""What stands before the answer in a rationale."""
Part = Literal["teacher", "student", "test"]
_PARTS: Final[tuple[tuple[float, Part], ...]] = ((0.3, "teacher"), (0.75, "student"), (1.0, "test"))
"""Up to which share of the digests' range the triples of numbers belong to a part."""
PEOPLE: Final[Mapping[str, str]] = {
    "Tom": "He",
    "Anna": "She",
    "Ben": "He",
    "Lucy": "She",
    "Sam": "He",
    "Maria": "She",
    "Paul": "He",
    "Emma": "She",
}
THINGS: Final = ("apples", "books", "coins", "pencils", "shells", "stamps", "cards", "eggs")


@dataclass(frozen=True, slots=True)
class Form:
    """One way to put a problem; `{a}`, `{b}`, `{c}` are the numbers, in words in the question."""

    question: str
    first: str
    second: str
    third: str


FORMS: Final = (
    Form(
        "{name} has {a} {things_a}, buys {b} more and finds {c}. How many {things} does {name} have?",
        "{name} has {a} {things_a}.",
        "{They} buys {b} more",
        "{They} finds {c}",
    ),
    Form(
        "There are {a} {things_a} in {name}'s bag, {b} in a box and {c} on the table. How many {things} are there?",
        "The bag has {a} {things_a}.",
        "The box adds {b}",
        "The table adds {c}",
    ),
    Form(
        "{name} gets {a} {things_a} on Monday, {b} on Tuesday and {c} on Friday. "
        "How many {things} does {name} get in all?",
        "Monday brings {a} {things_a}.",
        "Tuesday brings {b}",
        "Friday brings {c}",
    ),
    Form(
        "{name} owns {a} {things_a}. A friend gives {name} {b}, and a neighbour {c}. How many {things} is that now?",
        "{name} owns {a} {things_a}.",
        "The friend gives {b}",
        "The neighbour gives {c}",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WordProblem:
    """A question, its answer, and reasoning that ends in the answer."""

    question: str
    answer: int
    rationale: str


def problem(form: Form, name: str, things: str, numbers: tuple[int, int, int]) -> WordProblem:
    """The problem of a form with its words and numbers, each of 1 to 9."""
    a, b, c = numbers
    words = {"name": name, "They": PEOPLE[name], "things": things, "things_a": things if a > 1 else things[:-1]}
    asked = form.question.format(**words, a=WORDS[a], b=WORDS[b], c=WORDS[c])
    first, second, third = (part.format(**words, a=a, b=b, c=c) for part in (form.first, form.second, form.third))
    rationale = f"{first} {second}: {a} + {b} = {a + b}. {third}: {a + b} + {c} = {a + b + c}. {MARKER} {a + b + c}."
    return WordProblem(question=asked, answer=a + b + c, rationale=rationale)


def part_of(numbers: Iterable[int]) -> Part:
    """The part that problems of these numbers belong to, in any order; the same on every machine."""
    digest = hashlib.sha256(repr(sorted(numbers)).encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return next(part for limit, part in _PARTS if share < limit or limit == 1.0)


@cache
def _triples(part: Part) -> tuple[tuple[int, int, int], ...]:
    return tuple(t for t in itertools.product(_DIGITS, _DIGITS, _DIGITS) if part_of(t) == part)


def word_problems(count: int, *, seed: int, part: Part) -> list[WordProblem]:
    """`count` different problems, drawn from all of a part.

    Raises:
        ValueError: there are not so many.
    """
    everything = (FORMS, tuple(PEOPLE), THINGS, _triples(part))
    total = len(FORMS) * len(PEOPLE) * len(THINGS) * len(everything[3])
    if not 0 <= count <= total:
        raise ValueError(f"expected a count of 0 to {total}, which is how many problems there are; got {count}")
    problems = []
    for number in random.Random(seed).sample(range(total), count):
        chosen = []
        for choices in everything:
            number, rest = divmod(number, len(choices))
            chosen.append(choices[rest])
        problems.append(problem(*chosen))  # type: ignore[arg-type]  # one of each, in this order
    return problems


def answer_in(text: str) -> int | None:
    """The whole number behind the last marker, or None where there is no marker or no such number behind it."""
    found = re.match(r"\s*(\d{1,9})(?![\d,]|\.\d)", text.rpartition(MARKER)[2]) if MARKER in text else None
    return int(found[1]) if found else None


def write_problems(path: Path, problems: Iterable[WordProblem]) -> int:
    """Write JSON lines {"question", "answer", "rationale", "custom_id"}; returns how many."""
    lines = [json.dumps({**asdict(one), "custom_id": f"problem-{n}"}) for n, one in enumerate(problems)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def main() -> None:
    """Write a corpus of problems, as `logitcask generate` takes it."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=get_args(Part), default="student")
    options = parser.parse_args()
    problems = word_problems(options.count, seed=options.seed, part=options.part)
    print(f"{write_problems(options.path, problems)} problems in {options.path}")


if __name__ == "__main__":
    main()
