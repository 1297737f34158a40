"""One conversation through a chat template: its text, and what in that text is whose.

Shape legend: character positions refer to the rendered text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from jinja2 import TemplateError

from logitcask_services.corpora.lines import ChatLine, LineProblem
from logitcask_services.corpora.marks import RESERVED, TOOLS, Mark, Marker, PlacedMark, literals_of
from logitcask_services.corpora.messages import REASONING_FIELDS, normalise

TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template's expressions raise on messages they were not written for."""
TEMPLATE_DATE: Final = date(2024, 7, 26)
"""Today, for a template that asks: the same on every day, so that the same corpus gives the same documents."""
_GENERATION: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THOUGHT_ENDS: Final = ("</think>", "</thinking>", "[/THINK]")


@dataclass(frozen=True, slots=True)
class Words:
    """A stretch of the text that stands for words of a message."""

    message: int
    """Its number, or `marks.TOOLS`."""
    start: int
    stop: int
    repeated: bool = False
    """The name of a tool, which templates write again where its result stands: it makes no turn there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A rendered line."""

    messages: list[dict[str, Any]]
    """Normalised."""
    text: str
    words: list[Words] | None
    """In order of the text; None where the template changes with marked words, so that nothing is proved."""
    generation: list[tuple[int, int]]
    """What the template itself declares to be the assistant's (`{% generation %}`)."""
    notes: frozenset[str]
    tools: list[Any] | None = None
    options: dict[str, Any] | None = None
    """Further variables of the template."""

    def continued(self, prefix: str) -> "Conversation":
        """With the beginning of an answer behind a text that ends with the generation prompt."""
        message, start = len(self.messages), len(self.text)
        answer = Words(message, start, start + len(prefix))
        return replace(
            self,
            messages=[*self.messages, {"role": "assistant", "content": prefix}],
            text=self.text + prefix,
            words=None if self.words is None else [*self.words, answer],
        )


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        """Keep the tokenizer, of transformers; it has a chat template."""
        self._tokenizer = tokenizer
        self._asked_for_date = False
        self._facts: dict[bool, tuple[str, re.Pattern[str] | None]] = {}

    def render(self, line: ChatLine, *, prompt: bool = False) -> Conversation:
        """Render a line and prove where its words are.

        Args:
            line: the conversation.
            prompt: with the generation prompt at the end.

        Raises:
            LineProblem: the template refuses the messages, or words of a message vanish.
        """
        self._asked_for_date = False
        messages, text = self._normal(line, prompt=prompt)
        notes = {"template_date"} if self._asked_for_date else set[str]()
        words, marker, placed = self._words(messages, line, text, prompt=prompt)
        if marker is None:
            _require_words(messages, text)
            notes.add("rendering_unproved")
        else:
            notes |= _losses(messages, marker, placed)
        if line.tools and self._same_without_tools(messages, line, text, prompt=prompt):
            notes.add("tools_dropped")
        return Conversation(
            messages=messages,
            text=text,
            words=words,
            generation=[] if prompt else self._generation(messages, line, text),
            notes=frozenset(notes),
            tools=line.tools,
            options=line.template_kwargs,
        )

    def _normal(self, line: ChatLine, *, prompt: bool) -> tuple[list[dict[str, Any]], str]:
        """The messages as this template takes them, and their text; arguments of calls as JSON where it wants that."""
        separator = self._content_form[1]
        messages = normalise(line.messages, separator)
        failure: LineProblem | None = None
        try:
            text = self.plain(messages, line.tools, line.template_kwargs, prompt=prompt)
        except LineProblem as problem:
            failure, text = problem, ""
        values = _arguments(messages)
        # Some templates put arguments between other texts as they are: objects fail there, or come out as Python's.
        if values and (failure is not None or any(str(value) in text for value in values)):
            written = normalise(line.messages, separator, arguments_as_json=True)
            try:
                return written, self.plain(written, line.tools, line.template_kwargs, prompt=prompt)
            except LineProblem:
                pass  # then arguments are not what it refuses
        if failure is not None:
            raise failure
        return messages, text

    def plain(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: list[Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        prompt: bool = False,
    ) -> str:
        """The text of normalised messages, with the generation prompt or without. Raises LineProblem."""
        return self._apply(self._shaped(messages), tools, options, prompt=prompt)

    def _apply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: list[Any] | None,
        options: Mapping[str, Any] | None,
        *,
        prompt: bool,
    ) -> str:
        variables = {"strftime_now": self._strftime, **(options or {})}
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **variables
            )
        except (TemplateError, *TEMPLATE_FAULTS) as error:
            raise LineProblem("template_failed", f"the chat template refused the messages: {error}") from error
        return text

    def _same_without_tools(self, messages: list[dict[str, Any]], line: ChatLine, text: str, *, prompt: bool) -> bool:
        """Whether the definitions of tools leave no trace in the text."""
        try:
            return self.plain(messages, None, line.template_kwargs, prompt=prompt) == text
        except LineProblem:
            return False

    def _strftime(self, form: str) -> str:
        self._asked_for_date = True
        return TEMPLATE_DATE.strftime(form)

    def _source(self, *, tools: bool) -> tuple[str, re.Pattern[str] | None]:
        """The template that lines with or without tools use, and its literals."""
        if tools not in self._facts:
            source: str = self._tokenizer.get_chat_template(None, [{}] if tools else None)
            self._facts[tools] = source, literals_of(source)
        return self._facts[tools]

    def _words(
        self, messages: list[dict[str, Any]], line: ChatLine, text: str, *, prompt: bool
    ) -> tuple[list[Words] | None, Marker | None, list[PlacedMark]]:
        """Where the messages' words are: marked, rendered again, and equal to the plain text without the marks."""
        source, literals = self._source(tools=bool(line.tools))
        if RESERVED.search(source + text):
            return None, None, []
        for outer, calls in ((True, True), (False, True), (False, False)):
            marker = Marker(literals, outer=outer, calls=calls)
            marked = marker.messages(messages)
            tools = line.tools and (marker.tools(line.tools) if outer else line.tools)
            try:
                rendering = self.plain(marked, tools, line.template_kwargs, prompt=prompt)
            except LineProblem:
                continue
            unmarked, placed = marker.read(rendering)
            if unmarked == text:
                return _stretches(messages, text, placed), marker, placed
        return None, None, []

    def _generation(self, messages: list[dict[str, Any]], line: ChatLine, text: str) -> list[tuple[int, int]]:
        source, _ = self._source(tools=bool(line.tools))
        if not _GENERATION.search(source):
            return []
        from transformers.utils.chat_template_utils import render_jinja_template

        options = {**self._tokenizer.special_tokens_map, "strftime_now": self._strftime, **(line.template_kwargs or {})}
        answer: Any = render_jinja_template(
            [list(map(dict, self._shaped(messages)))],
            tools=line.tools,
            chat_template=source,
            return_assistant_tokens_mask=True,
            **options,
        )
        rendered, indices = answer
        return [(start, stop) for start, stop in indices[0] if stop > start] if rendered[0] == text else []

    def _shaped(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Contents as the template takes them: some of multimodal models know lists of parts only."""
        if self._content_form[0] == "string":
            return messages
        return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]

    @cached_property
    def _content_form(self) -> tuple[str, str]:
        """`string` or `parts`, whatever carries words into the text; and what it writes between two text parts.

        Where it does not take lists the second is a line break, as vLLM's server joins parts.
        """
        first, second = "Primum7", "Secundum9"
        parts = [{"type": "text", "text": first}, {"type": "text", "text": second}]
        as_string, as_parts = self._probe(first), self._probe(parts)
        start, stop = as_parts.find(first), as_parts.find(second)
        between = as_parts[start + len(first) : stop] if 0 <= start < stop else None
        takes_parts = between is not None and not between.strip()
        form = "parts" if takes_parts and first not in as_string else "string"
        return form, between if takes_parts and between is not None else "\n"

    def _probe(self, content: Any) -> str:
        try:
            return self._apply([{"role": "user", "content": content}], None, None, prompt=False)
        except LineProblem:
            return ""


def without_thinking(content: str) -> str:
    """What a message says besides its thoughts, without outer white space."""
    return content[_thoughts_end(content) :].strip()


def _thoughts_end(content: str) -> int:
    """Characters up to the end of the last thought, 0 where there is none: templates split there."""
    return max(content.rfind(tag) + len(tag) if tag in content else 0 for tag in _THOUGHT_ENDS)


def _stretches(messages: list[dict[str, Any]], text: str, placed: list[PlacedMark]) -> list[Words]:
    """Text between marks of one message's field, in the field's order, is that message's."""
    words, names = list[Words](), set[tuple[int, str]]()
    for before, here in pairwise(placed):
        first, last = before.mark, here.mark
        if (first.message, first.field) != (last.message, last.field) or first.offset >= last.offset:
            continue
        start, stop = before.position, here.position
        content = messages[first.message].get(first.field) if first.message != TOOLS else None
        if isinstance(content, str):
            # What the message says just before and after, where no mark was set around it.
            ahead, behind = content[: first.offset].lstrip(), content[last.offset :].rstrip()
            if ahead and text.endswith(ahead, 0, start):
                start -= len(ahead)
            if behind and text.startswith(behind, stop):
                stop += len(behind)
        name = (first.message, first.field)
        words.append(Words(first.message, start, stop, repeated=name in names))
        if first.field.endswith(" name"):
            names.add(name)
    return words


def _losses(messages: list[dict[str, Any]], marker: Marker, placed: list[PlacedMark]) -> set[str]:
    """Notes of what the template leaves out on purpose. Raises LineProblem where other words are gone."""
    notes, seen = set[str](), {mark.mark for mark in placed}
    for first, last in marker.pieces:
        if first in seen and last in seen:
            continue
        at, name = first.message, first.field
        message = messages[at] if at != TOOLS else {}
        if at == TOOLS:
            continue  # whether tools are used at all is looked at by their names
        if name in REASONING_FIELDS:
            notes.add("reasoning_dropped")
        elif name.startswith("tool_calls"):
            notes.add("tool_calls_dropped")
        elif message["role"] in ("system", "developer") and not _any_of(at, placed):
            notes.add("system_dropped")
        elif message["role"] == "assistant" and last.offset <= _thoughts_end(message["content"]):
            notes.add("reasoning_dropped")
        elif (first in seen or last in seen) and _has_pieces(marker, first, last):
            continue  # only its inner pieces are looked at: a template that drops thinking loses the outer mark
        else:
            words = message["content"][first.offset : last.offset][:60]
            raise LineProblem(
                "words_dropped",
                f"the chat template leaves out words of `messages[{at}]` (role {json.dumps(message['role'])[:40]}): "
                f"{json.dumps(words, ensure_ascii=False)}; change the line, or render it yourself and send `text`",
            )
    return notes


def _has_pieces(marker: Marker, first: Mark, last: Mark) -> bool:
    """Whether smaller pieces lie between two marks, each of which is looked at by itself."""
    return any(
        (start.message, start.field) == (first.message, first.field)
        and first.offset <= start.offset
        and stop.offset <= last.offset
        and (start, stop) != (first, last)
        for start, stop in marker.pieces
    )


def _arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The arguments of calls that are objects and hold something."""
    functions = [call.get("function", call) for message in messages for call in message.get("tool_calls", ())]
    return [entry["arguments"] for entry in functions if isinstance(entry["arguments"], dict) and entry["arguments"]]


def _any_of(message: int, placed: list[PlacedMark]) -> bool:
    return any(mark.mark.message == message for mark in placed)


def _require_words(messages: list[dict[str, Any]], text: str) -> None:
    """Without marks: every line of every message must be somewhere. Raises LineProblem."""
    for at, message in enumerate(messages):
        for line in without_thinking(message["content"]).splitlines():
            if line.strip() and line.strip() not in text:
                raise LineProblem(
                    "words_dropped",
                    f"the rendering lacks words of `messages[{at}]`: "
                    f"{json.dumps(line.strip()[:60], ensure_ascii=False)}; render it yourself and send `text`",
                )
