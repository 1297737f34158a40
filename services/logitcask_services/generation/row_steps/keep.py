"""Drop rows that a bound excludes."""

import math
from collections.abc import Iterator
from fractions import Fraction

from logitcask_schemas.api.generation_steps import Keep
from logitcask_services.generation.numbers import as_number
from logitcask_services.generation.patterns import Pattern
from logitcask_services.generation.row_steps.stream import place, rows_of, samples_together, shown
from logitcask_services.generation.rows import Dropped, Row, Staged, Written


class KeepStep:
    """Codes: `unfinished` and `ended_early` (finish), `too_short`, `too_long` (tokens), `improbable`, `no_match`.

    `not_more` (the field `more` is not over `than` by enough; a difference of 0 is never enough where `by` is 0),
    `not_best` (others of its samples have more), `no_number` (nothing to compare), `not_written` (a bound of tokens on
    a field that the teacher did not write).
    """

    def __init__(self, step: Keep, number: int) -> None:
        if not math.isfinite(step.by):
            raise ValueError(f"step {number}: expected a finite number as `by`, got {step.by}")
        self._step = step
        self._number = number
        self._by = Fraction(repr(step.by))
        self._matches = Pattern(step.matches, f"step {number}, matches") if step.matches is not None else None
        self._needs_written = any(
            bound is not None for bound in (step.finish, step.min_tokens, step.max_tokens, step.min_mean_logprob)
        )

    def apply(self, stream: Iterator[Staged]) -> Iterator[Staged]:
        """See `RowStep`."""
        if self._step.best is None:
            for staged in stream:
                yield staged if isinstance(staged, Dropped) else self._row(staged)
            return
        for group in samples_together(stream):
            judged = [staged if isinstance(staged, Dropped) else self._row(staged) for staged in group]
            yield from self._best(judged, self._step.best)

    def _row(self, row: Row) -> Staged:
        found = self._problem(row)
        return row if found is None else row.drop(self._number, found[0], f"{place(row)}: {found[1]}")

    def _problem(self, row: Row) -> tuple[str, str] | None:
        """Code and message of the first bound that excludes a row."""
        step = self._step
        if self._needs_written:
            written = row.written.get(step.of)
            if written is None:
                return "not_written", f"expected that the teacher wrote `{step.of}`, but it did not: name such a field"
            if (found := self._written_problem(written)) is not None:
                return found
        if self._matches is not None:
            text = row.fields.get(step.of)
            if not isinstance(text, str) or self._matches.search(text) is None:
                return "no_match", f"expected that `{step.of}` matches {step.matches!r}, got {shown(text)}"
        return None if step.more is None else self._number_problem(row, step.more)

    def _written_problem(self, written: Written) -> tuple[str, str] | None:
        step, tokens = self._step, len(written.token_ids)
        if step.finish is not None and written.finish != step.finish:
            code = "unfinished" if written.finish == "length" else "ended_early"
            return code, f"expected `{step.of}` to end by {step.finish!r}, got {written.finish!r}"
        if step.min_tokens is not None and tokens < step.min_tokens:
            return "too_short", f"expected at least {step.min_tokens} tokens in `{step.of}`, got {tokens}"
        if step.max_tokens is not None and tokens > step.max_tokens:
            return "too_long", f"expected at most {step.max_tokens} tokens in `{step.of}`, got {tokens}"
        # Written so that NaN is excluded.
        if step.min_mean_logprob is not None and not written.mean_logprob >= step.min_mean_logprob:
            return (
                "improbable",
                f"expected a mean log-probability of at least {step.min_mean_logprob:g} nats per token in `{step.of}`, "
                f"got {written.mean_logprob:.4g}",
            )
        return None

    def _number_problem(self, row: Row, more: str) -> tuple[str, str] | None:
        names = [more] if self._step.than is None else [more, self._step.than]
        numbers = [as_number(row.fields.get(name)) for name in names]
        for name, number in zip(names, numbers, strict=True):
            if number is None:
                return "no_number", f"expected a number in `{name}`, got {shown(row.fields.get(name))}"
        if self._step.than is None:
            return None
        larger, smaller = (number for number in numbers if number is not None)
        difference = larger - smaller
        if difference < self._by or (difference == 0 and self._by == 0):
            least = f"at least {self._step.by:g} more" if self._by else "more"
            return "not_more", (
                f"expected `{more}` to be {least} than `{self._step.than}`, "
                f"got {shown(row.fields[more])} and {shown(row.fields[self._step.than])}"
            )
        return None

    def _best(self, group: list[Staged], most: int) -> Iterator[Staged]:
        more = self._step.more
        assert more is not None
        rows = rows_of(group)
        numbers = [as_number(row.fields[more]) or Fraction(0) for row in rows]
        # Stable: of equals, the first.
        order = sorted(range(len(rows)), key=lambda position: -numbers[position])
        best, position = set(order[:most]), -1
        for staged in group:
            if isinstance(staged, Dropped):
                yield staged
                continue
            position += 1
            if position in best:
                yield staged
                continue
            message = (
                f"{place(staged)}: expected `{more}` to be among the {most} largest of {len(rows)} samples, "
                f"got {shown(staged.fields[more])}"
            )
            yield staged.drop(self._number, "not_best", message)
