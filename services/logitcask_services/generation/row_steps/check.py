"""Compare a field with another, such as an answer with the corpus's own."""

from collections.abc import Iterator

from logitcask_schemas.api.generation_steps import Check
from logitcask_services.generation.numbers import as_number
from logitcask_services.generation.row_steps.stream import place, shown
from logitcask_services.generation.row_steps.values import canonical, canonical_text
from logitcask_services.generation.rows import Dropped, Row, Staged

_EXPECTED = {"number": "a number", "text": "a text or number", "set": "a list"}


class CheckStep:
    """Says in the check `<of>_equals_<against>` whether the two are the same; others drop, or stay with `mark`.

    A field without a value, or with one of another kind, is a wrong answer (`wrong_answer`). Where `against` is not of
    the kind that is compared, nothing can be said: the row is dropped as `no_reference`, or its check is null. Numbers
    are compared exactly ("1,000" is 1000.0), lists as sets: order and repetition do not count.
    """

    def __init__(self, step: Check, number: int) -> None:
        self._step = step
        self._number = number

    def apply(self, stream: Iterator[Staged]) -> Iterator[Staged]:
        """See `RowStep`."""
        for staged in stream:
            yield staged if isinstance(staged, Dropped) else self._row(staged)

    def _row(self, row: Row) -> Staged:
        step = self._step
        name = f"{step.of}_equals_{step.against}"
        got, expected = row.fields.get(step.of), row.fields.get(step.against)
        reference = self._comparable(expected)
        if reference is None:
            row = row.noted(name, None)
            message = (
                f"{place(row)}: expected {_EXPECTED[step.equal]} in `{step.against}` to compare `{step.of}` with, got "
                f"{shown(expected)}; correct the line, or parse the field first"
            )
            return row.drop(self._number, "no_reference", message) if step.otherwise == "drop" else row
        equal = self._comparable(got) == reference
        row = row.noted(name, equal)
        if equal or step.otherwise == "mark":
            return row
        message = f"{place(row)}: expected `{step.of}` to be {shown(expected)}, got {shown(got)}"
        return row.drop(self._number, "wrong_answer", message)

    def _comparable(self, value: object) -> object:
        """What is compared; None where the value is of another kind."""
        match self._step.equal:
            case "number":
                return as_number(value)
            case "text":
                # Models and corpora write numbers both ways.
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                return canonical_text(str(value)) if isinstance(value, str) or is_number else None
            case "set":
                return frozenset(canonical(item) for item in value) if isinstance(value, list | tuple) else None
