"""Marks in messages, by which a rendering shows where each message's words went.

A mark is a run of characters that no text holds (from a plane of Unicode for private use). Marks are set around the
words of a message, inside its outer white space, so that a template may strip; and around each piece between texts
that the template itself names, such as `</think>`, so that it may split there. A rendering of marked messages that
equals the plain one once the marks are taken out proves where everything lies.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

from logitcask_services.corpora.messages import REASONING_FIELDS

_FIRST: Final = 0xF0000
_OPEN, _CLOSE = chr(_FIRST), chr(_FIRST + 1)
_DIGITS: Final = "".join(chr(_FIRST + 16 + digit) for digit in range(16))
_MARK: Final = re.compile(f"{_OPEN}([{_DIGITS}]+){_CLOSE}")
RESERVED: Final = re.compile(f"[{_OPEN}-{chr(_FIRST + 31)}]")
"""Characters of marks; a text that holds one cannot be marked."""
_VALUES: Final = {character: f"{value:x}" for value, character in enumerate(_DIGITS)}
_LITERAL: Final = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
TOOLS: Final = -1
"""Stands for the number of a message in marks within the definitions of tools."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the words of a message."""

    message: int
    field: str
    """`content`, one of REASONING_FIELDS, or `tool_calls`, with a number for each string within."""
    offset: int
    """Characters of the field's text before it."""


@dataclass(frozen=True, slots=True)
class PlacedMark:
    """A mark as it came out of the template."""

    position: int
    """Characters of the rendering before it."""
    mark: Mark


@dataclass(slots=True)
class Marker:
    """Sets marks in the messages of one conversation.

    `outer` marks a content as a whole besides its pieces, `calls` the strings of tool calls too; a template that looks
    at how a content begins, or at a tool's name, may need one of them off.
    """

    literals: re.Pattern[str] | None
    outer: bool = True
    calls: bool = True
    marks: list[Mark] = field(default_factory=list)
    pieces: list[tuple[Mark, Mark]] = field(default_factory=list)
    """First and last mark of every piece of words."""

    def messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Copies of normalised messages, marked."""
        return [self._message(message, at) for at, message in enumerate(messages)]

    def tools(self, tools: list[Any]) -> list[Any]:
        """A copy of definitions of tools in which every string but keys is marked."""
        marked: list[Any] = self._leaves(tools, TOOLS, "tools")
        return marked

    def _message(self, message: dict[str, Any], at: int) -> dict[str, Any]:
        marked = dict(message)
        for name in ("content", *REASONING_FIELDS):
            if name in marked:
                marked[name] = self._text(marked[name], at, name, outer=self.outer)
        if self.calls and "tool_calls" in marked:
            marked["tool_calls"] = [self._call(call, at, number) for number, call in enumerate(marked["tool_calls"])]
        return marked

    def _call(self, call: dict[str, Any], at: int, number: int) -> dict[str, Any]:
        function = call.get("function", call)
        named = {
            **function,
            "name": self._text(function["name"], at, f"tool_calls {number} name", outer=True),
            "arguments": self._leaves(function["arguments"], at, f"tool_calls {number} arguments"),
        }
        return {**call, "function": named} if "function" in call else named

    def _leaves(self, value: Any, at: int, name: str) -> Any:
        if isinstance(value, str):
            return self._text(value, at, name, outer=True)
        if isinstance(value, dict):
            return {key: self._leaves(entry, at, f"{name}.{key}") for key, entry in value.items()}
        if isinstance(value, list):
            return [self._leaves(entry, at, f"{name}[{place}]") for place, entry in enumerate(value)]
        return value

    def _text(self, text: str, message: int, name: str, *, outer: bool) -> str:
        cuts = self._cuts(text, outer=outer)
        if not cuts:
            return text
        places = sorted({place for cut in cuts for place in cut})
        marks = {place: Mark(message, name, place) for place in places}
        self.pieces += [(marks[start], marks[stop]) for start, stop in cuts]
        parts, before = [], 0
        for place in places:
            parts += [text[before:place], self._written(marks[place])]
            before = place
        return "".join([*parts, text[before:]])

    def _cuts(self, text: str, *, outer: bool) -> list[tuple[int, int]]:
        """Start and end of the pieces to mark, of the whole first where `outer`."""
        whole = _core(text, 0, len(text))
        if whole is None:
            return []
        cuts = [whole] if outer else []
        if self.literals is not None:
            start = 0
            for literal in [*self.literals.finditer(text), None]:
                stop = len(text) if literal is None else literal.start()
                if (core := _core(text, start, stop)) is not None and core != whole:
                    cuts.append(core)
                start = stop if literal is None else literal.end()
            if len(cuts) == int(outer) and not outer:
                cuts = [whole]
        return cuts or [whole]

    def _written(self, mark: Mark) -> str:
        self.marks.append(mark)
        digits = f"{len(self.marks) - 1:x}"
        return _OPEN + "".join(_DIGITS[int(digit, 16)] for digit in digits) + _CLOSE

    def read(self, rendering: str) -> tuple[str, list[PlacedMark]]:
        """A rendering without its marks, and where each of them was."""
        parts, placed, before, length = [], [], 0, 0
        for match in _MARK.finditer(rendering):
            parts.append(rendering[before : match.start()])
            length += len(parts[-1])
            number = int("".join(_VALUES[digit] for digit in match[1]), 16)
            placed.append(PlacedMark(length, self.marks[number]))
            before = match.end()
        return "".join([*parts, rendering[before:]]), placed


def literals_of(template: str) -> re.Pattern[str] | None:
    """The texts between quotes in a template that it may look for in a message's words: tags and the like."""
    texts = set[str]()
    for match in _LITERAL.finditer(template):
        text = (match[1] if match[1] is not None else match[2]).replace("\\n", "\n").strip()
        if len(text) > 2 and not re.fullmatch(r"[\w\s.,:;!?]*", text):
            texts.add(text)
    if not texts:
        return None
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))


def _core(text: str, start: int, stop: int) -> tuple[int, int] | None:
    """The part of a piece within its outer white space; None where there is nothing else."""
    piece = text[start:stop]
    core = piece.strip()
    if not core:
        return None
    first = start + len(piece) - len(piece.lstrip())
    return first, first + len(core)
