"""Regular expressions that callers give: of bounded size, and searched within a time.

Some take for ever on a short text; others are a few characters that the library unrolls into gigabytes.
"""

import math
import re
from typing import Any

import regex

from logitcask_services.generation.errors import RecipeError

SECONDS = 2.0
"""Longest search of one text."""
LARGEST_UNROLLED = 20_000
"""Most items that repetitions may come to: the library writes `x{1000}` out, at up to a kilobyte for each item."""
_LEAST_COUNT = re.compile(r"\{(\d+)")
_PASSED_OVER = re.compile(r"\s+|#[^\n]*\n")
"""What stands between the signs of an expression that is spelled out (`(?x)`)."""


class Pattern:
    """A caller's regular expression.

    Args:
        pattern: In the syntax of Python's `re`, which the library `regex` extends.
        where: Begins messages: which step and option.

    Raises:
        RecipeError: it is no regular expression, or its repetitions come to more than `LARGEST_UNROLLED`.
    """

    def __init__(self, pattern: str, where: str) -> None:
        self._where = where
        self._text = pattern
        if (size := _unrolled(pattern)) > LARGEST_UNROLLED:
            raise RecipeError(
                f"{where}: the repetitions in {pattern[:80]!r} come to {_in_words(size)} items; at most "
                f"{LARGEST_UNROLLED:,} are searched for. Write smaller counts, or * and +"
            )
        try:
            self._compiled = regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise RecipeError(f"{where}: {pattern[:80]!r} is no regular expression: {error}") from error

    @property
    def groups(self) -> int:
        """How many groups it has."""
        return int(self._compiled.groups)

    def search(self, text: str) -> "regex.Match[str] | None":
        """The first match. Raises RecipeError where it takes longer than SECONDS or takes too much memory."""
        try:  # concurrent: other threads of the service go on meanwhile
            match: regex.Match[str] | None = self._compiled.search(text, concurrent=True, timeout=SECONDS)
        except TimeoutError as error:
            raise RecipeError(
                f"{self._where}: {self._text[:80]!r} took longer than {SECONDS:g} s on a text of {len(text)} "
                f"characters ({text[:60]!r} ...); repetitions within repetitions are the usual cause; "
                "write it without them"
            ) from error
        except MemoryError as error:
            raise RecipeError(
                f"{self._where}: {self._text[:80]!r} took too much memory on a text of {len(text)} characters; an "
                "expression that contains itself, such as (?R), is the usual cause; write it without"
            ) from error
        return match

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Pattern) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def _unrolled(pattern: str) -> int:
    """Items that the repetitions of an expression come to at most, as if each stood within all others."""
    spellings = (pattern, _PASSED_OVER.sub("", pattern))
    return max(
        len(spelling) * math.prod(max(1, int(count[:12])) for count in _LEAST_COUNT.findall(spelling))
        for spelling in spellings
    )


def _in_words(size: int) -> str:
    return f"{size:,}" if size < 10**12 else "more than 10^12"
