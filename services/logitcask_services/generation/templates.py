r"""Prompt templates: Markdown files with a small head, rendered for a row.

    ---
    kind: chat                      # or text, or ids
    description: What it is for.
    stop: ["\n\n"]                  # optional: texts that end what is written
    fields: [question]              # of the row; just those that the template uses
    ---
    [system]
    Answer the question.
    [each demonstrations]
    [user]
    {{ demonstration.question }}
    [assistant]
    {{ demonstration.answer }}
    [end]
    [user]
    {{ question }}

A line `[messages]` of a chat stands for the turns of the row's field `messages`, a conversation. A `text` template is
one text of Jinja; its last line end is dropped, and its loops see `demonstrations`, a list. A `chat` template is cut
into turns at lines that hold a marker alone, before anything is rendered, so no field makes a turn. Blank lines around
a turn's text are dropped. A last `[assistant]` turn is the beginning of an answer, which the teacher goes on with.
`{{ "[user]" }}` writes a marker as text. What Jinja can do here: see `template_sandbox`. An `ids` template has no body:
its one field holds the prompt as token ids.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError, meta
from jinja2.exceptions import SecurityError

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.template_budget import LONGEST_TEXT, Work
from logitcask_services.generation.template_head import Kind, only_field, split_head
from logitcask_services.generation.template_sandbox import FieldText, PromptEnvironment, UnknownSyntaxError

Role = Literal["system", "user", "assistant"]
LARGEST_TEMPLATE: Final = 256 * 1024
"""Characters of a template's file."""
_ROLES: Final[Mapping[str, Role]] = {"[system]": "system", "[user]": "user", "[assistant]": "assistant"}
_EACH, _END = "[each demonstrations]", "[end]"
_CONVERSATION, _MESSAGES = "[messages]", "messages"
_DEMONSTRATION, _DEMONSTRATIONS = "demonstration", "demonstrations"
_RESERVED: Final = frozenset({_DEMONSTRATION, _DEMONSTRATIONS, "loop", "range"})
_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What expressions raise on fields they were not written for."""
_ENVIRONMENT: Final = PromptEnvironment()
_IDS: Final = 2**32
"""Token ids are below; whether a teacher has one is for its engine to say."""


class RenderError(LogitcaskError, ValueError):
    """A template cannot be rendered for a row."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered text."""

    text: str
    field_spans: tuple[tuple[int, int], ...]
    """Characters [start, stop) that come from expressions, not from the template itself; ascending."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A rendered turn of a chat."""

    role: Role
    content: Rendered


@dataclass(frozen=True, slots=True)
class _TurnSource:
    role: Role
    source: Template
    each: bool
    """Whether it is repeated for each demonstration."""
    line: int
    is_conversation: bool = False
    """Whether it stands for the turns of the row's `messages`; there is nothing to render then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """A template. `parse` makes one of its file's text."""

    name: str
    sha256: str
    """Of the file's text, hex."""
    kind: Kind
    description: str
    stop: tuple[str, ...]
    fields: frozenset[str]
    """Fields of a row that it needs."""
    needs_demonstrations: bool
    _turns: tuple[_TurnSource, ...] = field(repr=False)
    """One, the user's, where the kind is `text`; none where it is `ids`."""

    @classmethod
    def parse(cls, name: str, text: str) -> "PromptTemplate":
        """Read a template.

        Raises:
            RecipeError: it cannot be used; the message names template and line, and says what to do.
        """
        if len(text) > LARGEST_TEMPLATE:
            raise RecipeError(f"template {name}: {len(text)} characters; a template has at most {LARGEST_TEMPLATE}")
        head, body, first_line = split_head(name, text)
        used = set[str]()
        if head.kind == "ids":
            turns, used = [], set(only_field(name, head, body))
        elif head.kind == "text":
            turns = [_compiled(name, "user", body.removesuffix("\n"), first_line, used, each=False)]
        else:
            turns = _chat(name, body, first_line, used)
        declared, needed = set(head.fields), used - _RESERVED
        if _DEMONSTRATION in used and not any(turn.each for turn in turns):
            raise RecipeError(
                f"template {name}: `{_DEMONSTRATION}` is known between the lines {_EACH} and {_END} of a chat alone; "
                f"write {{% for ... in {_DEMONSTRATIONS} %}} in a text"
            )
        if taken := sorted(declared & _RESERVED):
            raise RecipeError(f"template {name}: `fields` names {taken}, which a template has anyway; leave it out")
        if declared != needed:
            missing, unused = sorted(needed - declared), sorted(declared - needed)
            raise RecipeError(
                f"template {name}: `fields` should name just what the template uses"
                + (f"; add {missing}" if missing else "")
                + (f"; leave out {unused}, which it does not use" if unused else "")
            )
        return cls(
            name=name,
            sha256=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
            kind=head.kind,
            description=head.description,
            stop=head.stop,
            fields=frozenset(declared),
            needs_demonstrations=_DEMONSTRATIONS in used or any(turn.each for turn in turns),
            _turns=tuple(turns),
        )

    def text(self, values: Mapping[str, Any], demonstrations: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """The text of a `text` template.

        Args:
            values: fields of the row.
            demonstrations: fields of each.

        Raises:
            RenderError: code `unknown_field`, or `template_failed`.
        """
        if self.kind != "text":
            raise ValueError(f"template {self.name} is no text; call `turns` or `ids`")
        return self._render(self._turns[0], self._variables(values, demonstrations), Work())

    def turns(self, values: Mapping[str, Any], demonstrations: Sequence[Mapping[str, Any]] = ()) -> list[Turn]:
        """The turns of a `chat` template, in order. Arguments and errors as those of `text`."""
        if self.kind != "chat":
            raise ValueError(f"template {self.name} is no chat; call `text` or `ids`")
        variables, work = self._variables(values, demonstrations), Work()
        turns, length, at = list[Turn](), 0, 0
        while at < len(self._turns):
            each = [turn for turn in self._turns[at:] if turn.each] if self._turns[at].each else []
            block = each or [self._turns[at]]
            if block[0].is_conversation:
                turns += conversation_turns(self.name, variables[_MESSAGES])
                at += 1
                continue
            rounds = [{_DEMONSTRATION: dict(shown)} for shown in demonstrations] if each else [{}]
            for extra in rounds:
                for turn in block:
                    content = self._render(turn, {**variables, **extra}, work)
                    turns.append(Turn(turn.role, content))
                    length += len(content.text)
                    if length > LONGEST_TEXT:
                        raise RenderError("template_failed", f"template {self.name} {_too_long()}")
            at += len(block)
        return turns

    def ids(self, values: Mapping[str, Any]) -> list[int]:
        """The token ids that an `ids` template's field holds. Raises RenderError: `unknown_field`, `not_token_ids`."""
        if self.kind != "ids":
            raise ValueError(f"template {self.name} has no ids; call `text` or `turns`")
        ((field_name, ids),) = ((name, self._variables(values, ())[name]) for name in self.fields)
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < _IDS for token in ids):
            raise RenderError(
                "not_token_ids",
                f"template {self.name}: the field `{field_name}` should be a list of token ids from 0 on",
            )
        return list(ids)

    def _variables(self, values: Mapping[str, Any], demonstrations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if missing := sorted(self.fields - values.keys()):
            raise RenderError(
                "unknown_field",
                f"template {self.name} needs the field `{missing[0]}`; the row has "
                f"{', '.join(sorted(values)[:32]) or 'no fields'}",
            )
        chosen = {name: values[name] for name in self.fields}
        return {**chosen, _DEMONSTRATIONS: [dict(shown) for shown in demonstrations]}

    def _render(self, turn: _TurnSource, variables: dict[str, Any], work: Work) -> Rendered:
        try:
            return _joined(turn.source.generate({**variables, **work.variables()}))
        except UndefinedError as error:
            raise RenderError(
                "unknown_field", f"template {self.name} uses what the row does not have: {error.message}"
            ) from error
        except (SecurityError, TemplateError, *_FAULTS) as error:
            raise RenderError("template_failed", f"template {self.name} cannot be rendered: {error}") from error


def conversation_turns(name: str, messages: Any) -> list[Turn]:
    """The turns of a conversation. Raises RenderError where it is none, or has more in it than words.

    Args:
        name: Of the template, for the message.
        messages: A list of `role` (system, user, assistant) and `content` (a text, or a list of text parts).
    """
    if not isinstance(messages, list) or not messages:
        raise RenderError("template_failed", f"template {name}: `{_MESSAGES}` is no list of messages, or an empty one")
    turns = list[Turn]()
    for at, message in enumerate(messages):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            content = "".join(str(part.get("text", "")) for part in content)
        known = _ROLES.get("[system]" if role == "developer" else f"[{role}]")
        if known is None or not isinstance(content, str):
            raise RenderError(
                "template_failed",
                f"template {name}: `{_MESSAGES}[{at}]` must have the role system, user or assistant, and a text as its "
                "content; tool calls, tools' answers and pictures cannot be asked with",
            )
        turns.append(Turn(known, Rendered(content, ((0, len(content)),))))
    return turns


def _joined(pieces: Iterable[str]) -> Rendered:
    """The pieces as one text. Raises SecurityError where it is too long."""
    parts, spans, length = list[str](), list[tuple[int, int]](), 0
    for piece in pieces:
        start, length = length, length + len(piece)
        if length > LONGEST_TEXT:
            raise SecurityError(_too_long())
        parts.append(piece)
        if isinstance(piece, FieldText) and piece:
            spans.append((start, length))
    return Rendered("".join(parts), tuple(spans))


def _too_long() -> str:
    return f"writes more than {LONGEST_TEXT} characters; show less"


def _compiled(name: str, role: Role, source: str, line: int, used: set[str], *, each: bool) -> _TurnSource:
    """A turn, its variables added to `used`. Raises RecipeError."""
    try:
        tree = _ENVIRONMENT.guarded(source, name)
        used |= meta.find_undeclared_variables(tree) - {"range"}
        code = _ENVIRONMENT.compile(tree, name, f"<template {name}>")
    except TemplateSyntaxError as error:
        raise RecipeError(
            f"template {name}, line {line + error.lineno - 1}: {error.message}; see Jinja's syntax"
        ) from error
    except UnknownSyntaxError as error:
        raise RecipeError(f"template {name}, line {line + error.line - 1}: {error}") from error
    except (RecursionError, MemoryError, ValueError, OverflowError, SyntaxError) as error:
        raise RecipeError(
            f"template {name}, from line {line} on: it cannot be compiled ({type(error).__name__}: "
            f"{str(error)[:200]}); nest it less deeply"
        ) from error
    return _TurnSource(
        role, Template.from_code(_ENVIRONMENT, code, {"range": _ENVIRONMENT.globals["range"]}), each, line
    )


def _chat(name: str, body: str, first_line: int, used: set[str]) -> list[_TurnSource]:
    """The turns of a chat. Raises RecipeError."""

    def refuse(line: int, message: str) -> RecipeError:
        return RecipeError(f"template {name}, line {line}: {message}")

    blocks, inside, each_turns = list[tuple[Role | None, bool, int, list[str]]](), False, 0
    open_turn = False
    for number, content in enumerate(body.split("\n"), start=first_line):
        marker = content.rstrip()
        if marker in _ROLES:
            blocks.append((_ROLES[marker], inside, number, []))
            each_turns, open_turn = each_turns + inside, True
        elif marker == _CONVERSATION:
            if inside:
                raise refuse(number, f"{_CONVERSATION} between {_EACH} and {_END}; put it outside")
            blocks.append((None, False, number, []))
            open_turn = False
        elif marker == _EACH:
            if any(each for _, each, _, _ in blocks) or inside:
                raise refuse(number, f"a second {_EACH}; a chat shows its demonstrations once")
            inside, open_turn = True, False
        elif marker == _END:
            if not inside or not each_turns:
                raise refuse(number, f"{_END} without turns behind a line {_EACH}; write turns there, or leave it out")
            inside, open_turn = False, False
        elif open_turn:
            blocks[-1][3].append(content)
        elif content.strip():
            raise refuse(
                number,
                f"{json.dumps(content[:40])} stands in no turn; put a line [system], [user] or [assistant] before",
            )
    if inside:
        raise refuse(first_line, f"{_EACH} has no {_END}; put that line behind its last turn")
    if not blocks or blocks[-1][1]:
        raise refuse(first_line, "a chat ends with a turn outside of its demonstrations; add [user] and what is asked")
    turns = list[_TurnSource]()
    for role, each, line, lines in blocks:
        if role is None:
            used.add(_MESSAGES)
            turns.append(_TurnSource("user", Template(""), each=False, line=line, is_conversation=True))
            continue
        blank = next((at for at, content in enumerate(lines) if content.strip()), None)
        if blank is None:
            raise refuse(line, "the turn is empty; write something below its marker, or leave it out")
        source = "\n".join(lines[blank:]).rstrip("\n")
        turn_used = set[str]()
        turns.append(_compiled(name, role, source, line + 1 + blank, turn_used, each=each))
        if _DEMONSTRATION in turn_used and not each:
            raise refuse(line, f"`{_DEMONSTRATION}` is known between the lines {_EACH} and {_END} alone")
        used |= turn_used
    return turns
