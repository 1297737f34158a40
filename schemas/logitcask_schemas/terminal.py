"""What every command agrees with its caller: exit codes, safe text on a terminal, numbers in sentences."""

import importlib.metadata
import unicodedata
from typing import Final

EXIT_FAILURE: Final = 1
"""It could not be done; stderr says why."""
EXIT_USAGE: Final = 2
"""The command line is wrong, or an extra is not installed."""
EXIT_PROBLEMS: Final = 3
"""It was done, and the job or cask has problems."""
EXIT_INTERRUPTED: Final = 130
"""Ctrl-C."""


def installed_version() -> str:
    """Version of the installed logitcask, or "(not installed)"."""
    try:
        return importlib.metadata.version("logitcask")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with everything escaped that a terminal would act on, or that cannot be seen.

    Control characters (ESC, line ends, C1 such as U+009B), marks that turn the writing direction, line separators and
    lone surrogates become `\x1b`, `\n`, `\u202e`. Letters, signs and spaces of all scripts stay.

    Args:
        text: From a request, a file, a cask or a service.
        keep: Characters that stay all the same, such as line ends of a message of several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def counted(count: int, noun: str) -> str:
    """A number of things: "1 document", "2,000 documents"; the noun is one that takes an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def bytes_text(count: float) -> str:
    """Bytes with a decimal unit."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
