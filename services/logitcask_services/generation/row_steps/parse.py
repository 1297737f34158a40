"""Find the answer in a text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from logitcask_schemas.api.generation_steps import Parse
from logitcask_services.generation.answers import find_choice, find_items, find_object
from logitcask_services.generation.arithmetic import ProgramRefusedError, compute, program_in
from logitcask_services.generation.numbers import as_number, find_numbers, json_number
from logitcask_services.generation.patterns import Pattern
from logitcask_services.generation.row_steps.stream import place, shown
from logitcask_services.generation.rows import Dropped, Row, Staged
from logitcask_services.generation.sandbox import SandboxError, run_in_sandbox

SANDBOX_SECONDS = 10.0

_EXPECTED = {
    "number": "a number",
    "choice": "a letter A to Z as an answer",
    "json": "a JSON object",
    "regex": "text that the pattern matches",
    "text": "text",
    "program": "a program with an answer",
    "list": "a numbered list",
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """The answer of a text: a JSON value, and the text before it."""

    value: object
    before: str


class NoAnswerError(ValueError):
    """The text holds none; says what was expected."""


class ParseStep:
    """Puts the answer of a field `into` another, and what stands before it into `rationale`.

    A marker is found without regard to case, and its last place counts; a text without it has no answer. The rationale
    ends at the marker where there is one, else at the answer. Where there is no answer, `drop` drops the row with the
    code `unparsed_answer`; `mark` keeps it with null, and the check `<into>_unparsed` says why.
    """

    def __init__(self, step: Parse, number: int, *, sandbox: Sequence[str] | None = None) -> None:
        self._step = step
        self._number = number
        self._sandbox = sandbox
        self._marker = re.compile(re.escape(step.marker), re.IGNORECASE) if step.marker is not None else None
        self._pattern = Pattern(step.pattern, f"step {number}, pattern") if step.pattern is not None else None

    def apply(self, stream: Iterator[Staged]) -> Iterator[Staged]:
        """See `RowStep`."""
        for staged in stream:
            yield staged if isinstance(staged, Dropped) else self._row(staged)

    def _row(self, row: Row) -> Staged:
        step = self._step
        try:
            found = self._parse(row.fields.get(step.of))
        except NoAnswerError as error:
            message = f"{place(row)}: expected {error} in `{step.of}`, got {shown(row.fields.get(step.of))}"
            if step.otherwise == "drop":
                return row.drop(self._number, "unparsed_answer", message)
            row = row.put(step.into, None).noted(f"{step.into}_unparsed", message)
            return row if step.rationale is None else row.put(step.rationale, None)
        row = row.put(step.into, found.value)
        return row if step.rationale is None else row.put(step.rationale, found.before.strip())

    def _parse(self, text: object) -> Parsed:
        if not isinstance(text, str):
            raise NoAnswerError("text")
        before, behind, marked = "", text, False
        if self._marker is not None:
            places = list(self._marker.finditer(text))
            if not places:
                raise NoAnswerError(f"{_EXPECTED[self._step.answer]} behind the marker {self._step.marker!r}")
            before, behind, marked = text[: places[-1].start()], text[places[-1].end() :], True
        value, start = self._answer(behind, marked)
        return Parsed(value, before if marked else behind[:start])

    def _answer(self, text: str, marked: bool) -> tuple[object, int]:
        """The answer and where it begins."""
        missing = _EXPECTED[self._step.answer] + (f" behind the marker {self._step.marker!r}" if marked else "")
        match self._step.answer:
            case "number":
                numbers = list(find_numbers(text))
                if not numbers:
                    raise NoAnswerError(missing)
                number = numbers[0] if marked else numbers[-1]
                return json_number(number.value), number.start
            case "choice":
                if (letter := find_choice(text, behind_marker=marked)) is not None:
                    return letter.value, letter.start
            case "json":
                if (found := find_object(text)) is not None:
                    return found.value, found.start
            case "list":
                if (items := find_items(text)) is not None:
                    return items.value, items.start
            case "regex":
                assert self._pattern is not None
                match = self._pattern.search(text)
                # An optional group 1 that took no part has no text.
                got = None if match is None else match[1 if self._pattern.groups else 0]
                if match is not None and got is not None:
                    return got, match.start()
                raise NoAnswerError(f"text that {self._step.pattern!r} matches")
            case "text":
                if text.strip():
                    return text.strip(), 0
            case "program":
                program, start = program_in(text)
                return self._computed(program), start
        raise NoAnswerError(missing)

    def _computed(self, program: str) -> object:
        try:
            return json_number(compute(program))
        except ProgramRefusedError as refused:
            if self._sandbox is None:
                raise NoAnswerError(
                    f"a program that is arithmetic ({refused}; other programs run only where the service has a "
                    "sandbox command)"
                ) from refused
            try:
                printed = run_in_sandbox(self._sandbox, program, SANDBOX_SECONDS).strip()
            except SandboxError as error:
                raise NoAnswerError(f"a program that runs in the sandbox ({error})") from error
            if not printed:
                raise NoAnswerError("a program that prints its answer") from refused
            number = as_number(printed)
            return printed if number is None else json_number(number)
