"""One line of a corpus: JSON bytes in, one of three kinds of source out, or the reason why not.

Accepted objects, each with an optional `custom_id`, and an optional context: what the teacher reads first and the
student does not see.
    {"text": str}
    {"messages": [{"role": str, ...}, ...], "tools": [...], "chat_template_kwargs": {...}}
                                                                   rendered with the teacher's chat template
    {"prompt": str, "completion": str}                             joined without anything between
    {"prompt": [messages], "completion": [messages]}               joined, then as `messages`
    {"input_ids": [int, ...], "attention_mask": ..., "labels": ...} taken as they are, without padding
    {"context": str} beside strings, [messages] beside messages; {"context_ids": [int, ...]} beside `input_ids`
    {"context_replaces": N} beside `context_ids`: these stand in place of the first N of `input_ids`
    {"recorded": [[start, stop], ...]} beside `input_ids`: the positions to record
Fields besides these are left alone. Lines of OpenAI's batches are the requests in them, see `batch_lines`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from logitcask_services.corpora.batch_lines import request_of
from logitcask_services.corpora.line_problems import LineProblem as LineProblem
from logitcask_services.corpora.line_problems import conversion_of
from logitcask_services.corpora.line_problems import kind_of_value as _kind
from logitcask_services.corpora.token_rows import read_context, read_recorded, read_replaced, read_row

MAX_CUSTOM_ID = 512
RESERVED_KWARGS = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
        "messages", "padding", "processor_kwargs", "return_assistant_tokens_mask", "return_dict", "return_tensors",
        "strftime_now", "tokenize", "tokenizer_kwargs", "tools", "truncation",
    }
)  # fmt: skip
"""Names that say how to render, not what."""
FORMS = "`text`, `messages`, `prompt` with `completion`, or `input_ids`"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLine:
    """Plain text, to be encoded with the tokenizer's own special tokens."""

    text: str
    answer_start: int | None = None
    """Character at which the completion begins; None where the line does not tell prompt from completion."""
    context: str | None = None
    """Stands before the text when the teacher reads it, without anything between."""
    custom_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatLine:
    """Messages, to be rendered with the chat template."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] | None = None
    """Further variables of the template, such as enable_thinking."""
    first_answer: int = 0
    """Messages before this one are a prompt; the assistant's turns among them are no answers."""
    is_completion: bool = False
    """Whether the messages from there on are a completion, all of whose turns were written last."""
    context: list[dict[str, Any]] | None = None
    """Messages that stand before these when the teacher reads them."""
    custom_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLine:
    """Token ids, without padding."""

    input_ids: list[int] = field(default_factory=list)
    answers: tuple[tuple[int, int], ...] | None = None
    """Ranges [start, stop) of tokens that `labels` trains; None where the row has no labels."""
    context_ids: list[int] | None = None
    context_replaces: int = 0
    """First ids that the teacher does not read, because `context_ids` stand in their place."""
    recorded: tuple[tuple[int, int], ...] | None = None
    """Ranges [start, stop) of the positions to record; None where the row does not say."""
    notes: tuple[str, ...] = ()
    custom_id: str | None = None


ParsedLine = TextLine | ChatLine | TokenLine


def under_context(line: ParsedLine) -> ParsedLine | None:
    """All that the teacher reads of a line with a context, context first; None for other lines."""
    match line:
        case TextLine(context=str(context)):
            return replace(line, text=context + line.text, answer_start=None, context=None)
        case ChatLine(context=list(context)):
            return replace(
                line, messages=[*context, *line.messages], first_answer=line.first_answer + len(context), context=None
            )
        case TokenLine(context_ids=list(context_ids)):
            return replace(
                line,
                input_ids=[*context_ids, *line.input_ids[line.context_replaces :]],
                answers=None,
                context_ids=None,
                context_replaces=0,
                recorded=None,
            )
        case _:
            return None


_Reader = Callable[[dict[str, Any], str | None], ParsedLine]


def parse_line(raw: bytes) -> ParsedLine:
    """The document source in one line (bytes without or with its newline). Raises LineProblem, and nothing else."""
    entry = decode_line(raw)
    custom_id = read_custom_id(entry)
    forms: list[str] = [name for name in ("text", "messages", "input_ids") if name in entry]
    if "prompt" in entry and "completion" in entry:
        forms.append("prompt")
    try:
        if not forms:
            conversion = conversion_of(entry)
            way = f". {conversion}" if conversion else ""
            raise LineProblem("no_known_field", f"the object has the fields {_names(entry)}; expected {FORMS}{way}")
        if len(forms) > 1:
            fields = " and ".join(forms)
            raise LineProblem("ambiguous_fields", f"the object has {fields}; expected exactly one of {FORMS}")
        _require_own_fields(entry, forms[0])
        readers: dict[str, _Reader] = {
            "text": _text,
            "messages": _chat,
            "input_ids": _ids,
            "prompt": _prompt,
        }
        return readers[forms[0]](entry, custom_id)
    except LineProblem as problem:
        problem.custom_id = custom_id
        raise


_OF_IDS = ("context_ids", "context_replaces", "recorded")


def _require_own_fields(entry: dict[str, Any], form: str) -> None:
    """Raise LineProblem where a context, or ranges, are of the kind that goes with another form."""
    foreign = ("context",) if form == "input_ids" else _OF_IDS
    for name in foreign:
        if entry.get(name) is not None:
            advice = "use `context_ids`" if name == "context" else "it goes with `input_ids`"
            raise LineProblem("misplaced_field", f"`{name}` stands beside `{form}`; {advice}, or leave it out")


def decode_line(raw: bytes) -> dict[str, Any]:
    """The JSON object of a line; of a batch's line, the request in it. Raises LineProblem."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineProblem(
            "not_utf8", f"byte {error.start} of the line is not UTF-8 ({error.reason}); save the corpus as UTF-8"
        ) from error
    try:
        entry = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise LineProblem("not_json", "the line is nested too deeply to be read as JSON") from error
    except json.JSONDecodeError as error:
        # Its own message counts lines too, of which there is one.
        where = f"{error.msg} at character {error.pos + 1}"
        raise LineProblem("not_json", f"the line is not JSON: {where}; expected one JSON object per line") from error
    except ValueError as error:
        raise LineProblem("not_json", f"the line is not JSON: {error}; expected one JSON object per line") from error
    if not isinstance(entry, dict):
        raise LineProblem("not_an_object", f"the line is a JSON {_kind(entry)}; expected one JSON object per line")
    return request_of(entry)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def read_custom_id(entry: dict[str, Any]) -> str | None:
    """The caller's name of a line: its `custom_id`, else its `id` where that can be a name. Raises LineProblem."""
    value, name = entry.get("custom_id"), entry.get("id")
    if value is None:
        is_name = isinstance(name, str) and len(name) <= MAX_CUSTOM_ID and _is_unicode(name)
        is_number = isinstance(name, int) and not isinstance(name, bool) and abs(name) < 2**63
        return str(name) if is_name or is_number else None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return str(value)
    if isinstance(value, str) and len(value) <= MAX_CUSTOM_ID and _is_unicode(value):
        return value
    raise LineProblem(
        "bad_custom_id", f"`custom_id` must be a string of at most {MAX_CUSTOM_ID} characters or an integer"
    )


def _text(entry: dict[str, Any], custom_id: str | None) -> TextLine:
    return TextLine(text=_string(entry["text"], "text"), context=_context_text(entry), custom_id=custom_id)


def _prompt(entry: dict[str, Any], custom_id: str | None) -> ParsedLine:
    prompt, completion = entry["prompt"], entry["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        chat = _chat({**entry, "messages": prompt + completion}, custom_id)
        return replace(chat, first_answer=len(prompt), is_completion=True)
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise LineProblem(
            "wrong_type",
            f"`prompt` is a JSON {_kind(prompt)} and `completion` a JSON {_kind(completion)}; "
            "expected two strings, or two lists of messages",
        )
    text = _string(prompt + completion, "prompt` + `completion")
    return TextLine(text=text, answer_start=len(prompt), context=_context_text(entry), custom_id=custom_id)


def _context_text(entry: dict[str, Any]) -> str | None:
    """The context of a line of strings; None where there is none, or an empty one."""
    context = entry.get("context")
    if context is None or context == "":
        return None
    if not isinstance(context, str):
        raise LineProblem(
            "wrong_type", f"`context` is a JSON {_kind(context)}; expected a string, as the line's text is one"
        )
    return _string(context, "context")


def _messages(messages: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list):
        raise LineProblem("wrong_type", f"`{name}` is a JSON {_kind(messages)}; expected a list of messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise LineProblem("wrong_type", f'`{name}[{at}]` must be an object with a "role" string')
    return messages


def _chat(entry: dict[str, Any], custom_id: str | None) -> ChatLine:
    messages, tools = _messages(entry["messages"], "messages"), entry.get("tools")
    if not messages:
        raise LineProblem("empty", "`messages` is empty; there is nothing to capture")
    context = entry.get("context")
    if context is not None:
        context = _messages(context, "context") or None
    if tools is not None and not isinstance(tools, list):
        raise LineProblem("wrong_type", f"`tools` is a JSON {_kind(tools)}; expected a list or null")
    return ChatLine(
        messages=messages,
        tools=tools or None,
        template_kwargs=_template_kwargs(entry),
        context=context,
        custom_id=custom_id,
    )


def _template_kwargs(entry: dict[str, Any]) -> dict[str, Any] | None:
    options = entry.get("chat_template_kwargs")
    if options is None:
        return None
    if not isinstance(options, dict):
        raise LineProblem(
            "wrong_type", f"`chat_template_kwargs` is a JSON {_kind(options)}; expected an object or null"
        )
    if reserved := sorted(RESERVED_KWARGS & options.keys()):
        raise LineProblem(
            "reserved_kwargs",
            f"`chat_template_kwargs` sets {', '.join(reserved)}, which are not the template's to set; remove them",
        )
    return options


def _ids(entry: dict[str, Any], custom_id: str | None) -> TokenLine:
    ids, answers, notes = read_row(entry)
    context_ids, recorded = read_context(entry), read_recorded(entry, len(ids))
    return TokenLine(
        input_ids=ids,
        answers=answers,
        context_ids=context_ids,
        context_replaces=read_replaced(entry, len(ids), context_ids=context_ids, recorded=recorded),
        recorded=recorded,
        notes=notes,
        custom_id=custom_id,
    )


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise LineProblem("wrong_type", f"`{name}` is a JSON {_kind(value)}; expected a string")
    if not value:
        raise LineProblem("empty", f"`{name}` is empty; there is nothing to capture")
    if not _is_unicode(value):
        raise LineProblem("not_unicode", f"`{name}` holds half of a surrogate pair (\\ud800 to \\udfff) on its own")
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _names(entry: dict[str, Any]) -> str:
    names = [ascii(name)[:40] for name in list(entry)[:8]]
    return f"[{', '.join(names)}{', ...' if len(entry) > len(names) else ''}]"
