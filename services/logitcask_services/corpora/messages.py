"""Messages as chat templates expect them: text where people write lists of parts, null or JSON in a string.

This is what vLLM's own server does before it renders, so a corpus of requests gives the ids that the server would see.
Other things that a template would print as Python values are refused.
"""

import json
from typing import Any

from logitcask_services.corpora.lines import LineProblem

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that hold text, in OpenAI's two APIs."""
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


def normalise(messages: list[dict[str, Any]], separator: str) -> list[dict[str, Any]]:
    """Messages with string contents.

    Args:
        messages: as they stand in the line; not changed.
        separator: what stands between the text parts of a content, as the template would write them.

    Raises:
        LineProblem: a content cannot be rendered as text; it names message and field.
    """
    return [_message(message, f"messages[{at}]", separator) for at, message in enumerate(messages)]


def _message(message: dict[str, Any], where: str, separator: str) -> dict[str, Any]:
    changed = {name: value for name, value in message.items() if value is not None}
    if "content" not in message and not (
        changed.get("tool_calls") or any(name in changed for name in REASONING_FIELDS)
    ):
        raise LineProblem("wrong_type", f"`{where}` has no `content`; expected a string")
    changed["content"] = _text(changed.get("content", ""), f"{where}.content", separator)
    for name in REASONING_FIELDS:
        if name in changed:
            changed[name] = _text(changed[name], f"{where}.{name}", separator)
    if "tool_calls" in changed:
        changed["tool_calls"] = _calls(changed["tool_calls"], f"{where}.tool_calls")
    weight = changed.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        raise LineProblem("wrong_type", f"`{where}.weight` is {json.dumps(weight)[:40]}; expected 0 or 1")
    return changed


def _text(content: Any, where: str, separator: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise LineProblem(
            "wrong_type", f"`{where}` is {json.dumps(content)[:60]}; expected a string or a list of text parts"
        )
    return separator.join(_part(part, f"{where}[{at}]") for at, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in TEXT_PARTS:
        raise LineProblem(
            "unsupported_content",
            f"`{where}` is a part of type {json.dumps(kind)[:40]}; only text can be captured (parts of type "
            f"{', '.join(TEXT_PARTS)})",
        )
    if not isinstance(part.get("text"), str):
        raise LineProblem("wrong_type", f"`{where}.text` is {json.dumps(part.get('text'))[:60]}; expected a string")
    text: str = part["text"]
    return text


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise LineProblem("wrong_type", f"`{where}` is {json.dumps(calls)[:60]}; expected a list of objects")
    return [_call(call, f"{where}[{at}]") for at, call in enumerate(calls)]


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    """A call whose arguments, where they are JSON of an object, are that object: templates encode them themselves."""
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise LineProblem("wrong_type", f'`{where}` must have a "name" string, in itself or in its "function"')
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str | dict):
        raise LineProblem(
            "wrong_type", f"`{where}.arguments` is {json.dumps(arguments)[:60]}; expected an object, or its JSON"
        )
    changed = {**function, "arguments": _arguments(arguments)}
    return {**call, "function": changed} if "function" in call else changed


def _arguments(arguments: Any) -> Any:
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments
    return arguments
