"""Rows of other formats that people have: which one a row looks like, and the command that makes lines of it."""

from typing import Any

_ANSWERS = ("response", "output", "answer", "chosen")
"""Names under which rows with a `prompt` keep its completion."""


def conversion_of(entry: dict[str, Any]) -> str | None:
    """What a row without known fields looks like, and how to convert its file; None where it is like nothing known."""
    if isinstance(turns := entry.get("conversations"), list):
        if turns and isinstance(turns[0], dict) and "role" in turns[0]:
            return _way("messages under another name", "{messages: .conversations}")
        return _way(
            "ShareGPT",
            '{messages: [.conversations[] | {role: ({human: "user", gpt: "assistant"}[.from] // .from), '
            "content: .value}]}",
        )
    if "instruction" in entry and "output" in entry:
        return _way(
            "Alpaca",
            '{messages: [{role: "user", content: ([.instruction, .input // ""] | map(select(. != "")) | '
            'join("\\n\\n"))}, {role: "assistant", content: .output}]}',
        )
    if "prompt" in entry:
        if (answer := next((name for name in _ANSWERS if name in entry), None)) is not None:
            return _way(f"a prompt with its completion in `{answer}`", f"{{prompt, completion: .{answer}}}")
        name = "messages" if isinstance(entry["prompt"], list) else "text"
        return _way("a prompt alone", f"{{{name}: .prompt}}")
    return None


def _way(name: str, jq_filter: str) -> str:
    return f"It looks like {name}: jq -c '{jq_filter}' FILE makes lines of it"
