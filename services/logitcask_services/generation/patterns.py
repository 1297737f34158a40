"""Regular expressions that callers give: searched within a time, as some take for ever on a short text."""

from typing import Any

import regex

from logitcask_services.generation.errors import RecipeError

SECONDS = 2.0
"""Longest search of one text."""


class Pattern:
    """A caller's regular expression.

    Args:
        pattern: In the syntax of Python's `re`, which the library `regex` extends.
        where: Begins messages: which step and option.

    Raises:
        RecipeError: it is no regular expression.
    """

    def __init__(self, pattern: str, where: str) -> None:
        self._where = where
        self._text = pattern
        try:
            self._compiled = regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            raise RecipeError(f"{where}: {pattern[:80]!r} is no regular expression: {error}") from error

    @property
    def groups(self) -> int:
        """How many groups it has."""
        return int(self._compiled.groups)

    def search(self, text: str) -> "regex.Match[str] | None":
        """The first match. Raises RecipeError where it takes longer than SECONDS: every run of the job would."""
        try:  # concurrent: other threads of the service go on meanwhile
            match: regex.Match[str] | None = self._compiled.search(text, concurrent=True, timeout=SECONDS)
        except TimeoutError as error:
            raise RecipeError(
                f"{self._where}: {self._text[:80]!r} took longer than {SECONDS:g} s on a text of {len(text)} "
                f"characters ({text[:60]!r} ...); repetitions within repetitions are the usual cause; "
                "write it without them"
            ) from error
        return match

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Pattern) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)
