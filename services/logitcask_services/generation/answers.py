"""Answers in texts that models write: a choice's letter, a JSON object, the items of a numbered list.

Each function gives the answer and where it begins in the text, or None.
"""

import json
import re
from dataclasses import dataclass
from typing import Generic, TypeVar

from logitcask_services.corpora.line_problems import is_too_deep

T = TypeVar("T")

_TEXT = r"\\(?:text|textbf|mathbf|mathrm)\s*\{\s*"
_WRAPPED = rf"\\boxed\s*\{{\s*(?:{_TEXT})?|{_TEXT}|[(\[]\s*"
_CHOICE = re.compile(
    rf"""
      (?<!\w)(?:{_WRAPPED})[*_]*+(?P<wrapped>[A-Za-z])[*_]*+\s*[)\]}}]   # (b), [B], \boxed{{B}}
    | (?:^|(?<=[\s:*]))(?P<half>[A-Za-z])\)(?!\w)                  # b) at the start of a word
    | (?P<alone>(?m:^(?:[^\S\n]|[*_>"'])*+(?P<letter>[A-Za-z])(?:[^\S\n]|[*_.:"'])*+$))  # b, alone in its line
    | (?<![\w.'\u2019\-&\\])_{{0,2}}(?P<bare>[A-Z])_{{0,2}}(?![\w'\u2019\-&+\#]|\.\w)   # B or __B__ among words
    """,
    re.VERBOSE,
)
_ARTICLE = re.compile(r"[ \t]+[A-Za-z]")
_ITEM = re.compile(
    r"^(?P<indent>[ \t]*)(?:#{1,6}[ \t]+)?(?:\*\*|__)?(?P<number>[0-9]{1,3})[.):](?=\s|\*|_|$)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """An answer, and the character of the text at which it begins."""

    value: T
    start: int


def find_choice(text: str, *, behind_marker: bool) -> Found[str] | None:
    """A letter A to Z, as upper case: the last of a text, or the first of one that stands behind a marker.

    Lower-case letters count where they are in brackets, before one, or alone in their line. "A" and "I" before another
    word are words, save an "A" right behind a marker.
    """
    last: Found[str] | None = None
    for match in _CHOICE.finditer(text):
        letter = match["wrapped"] or match["half"] or match["letter"] or match["bare"]
        if match["bare"] in ("A", "I") and _ARTICLE.match(text, match.end()):
            first_word = behind_marker and not re.search(r"\w", text[: match.start()])
            if match["bare"] == "I" or not first_word:
                continue
        last = Found(letter.upper(), match.start())
        if behind_marker:
            break
    return last


def find_object(text: str) -> Found[dict[str, object]] | None:
    """The first balanced `{...}` that is a JSON object. One that never closes ends the search: its parts are no answer.

    Objects that cannot be stored are none: with NaN, infinite numbers, halves of surrogate pairs, or too deep ones.
    """
    start = text.find("{")
    while start >= 0:
        stop = _closing(text, start)
        if stop is None:
            return None
        try:
            value = json.loads(text[start:stop])
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            if not is_too_deep(value):
                return Found(value, start)
        except (ValueError, RecursionError):
            pass  # prose in braces, say
        start = text.find("{", stop)
    return None


def find_items(text: str) -> Found[list[str]] | None:
    """The items of a numbered list ("1. ", "2) ", "**3.** "), which may have several lines.

    Numbers that are further in than the first belong to their item. Where the first number is over 1, the prompt wrote
    the one before it, and the text before is that item. Empty items are left out; a list without items is none.
    """
    heads = list(_ITEM.finditer(text))
    if not heads:
        return None
    indent = len(heads[0]["indent"].expandtabs())
    heads = [head for head in heads if len(head["indent"].expandtabs()) <= indent]
    parts = [text[: heads[0].start()]] if int(heads[0]["number"]) > 1 else []
    if parts and parts[0].rstrip(" *_").rstrip().endswith(":"):
        parts = []
    start = 0 if parts else heads[0].start()
    ends = [head.start() for head in heads[1:]] + [len(text)]
    for head, end in zip(heads, ends, strict=True):
        parts.append(re.sub(r"^(?:\*\*|__)(?=\s)", "", text[head.end() : end]))
    items = [part.strip() for part in parts if part.strip()]
    return Found(items, start) if items else None


def _closing(text: str, start: int) -> int | None:
    """Behind the brace that closes the one at `start`; braces in strings do not count."""
    depth, quoted, position = 0, False, start
    for match in re.compile(r'\\.|["{}]', re.DOTALL).finditer(text, start):
        position = match.end()
        match match[0]:
            case '"':
                quoted = not quoted
            case "{" if not quoted:
                depth += 1
            case "}" if not quoted:
                depth -= 1
                if not depth:
                    return position
    return None
