"""What is wrong or unusual about the lines of a corpus: codes for programs, sentences for people."""

from typing import Any, Final

from logitcask_schemas.errors import LogitcaskError

DEEPEST: Final = 64
"""Lists and objects within one another in a field: readers of JSON give up at some depth, each at its own."""
_KINDS = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}


class LineProblem(LogitcaskError, ValueError):
    """A line that cannot become a document: a stable code and a sentence for people."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.custom_id = custom_id


def is_too_deep(value: object) -> bool:
    """Whether a JSON value has more than `DEEPEST` lists and objects within one another."""
    level = [value]
    for _ in range(DEEPEST + 1):
        containers = [entry for entry in level if isinstance(entry, list | dict)]
        level = [inner for outer in containers for inner in (outer.values() if isinstance(outer, dict) else outer)]
        if not containers:
            return False
    return True


def kind_of_value(value: Any) -> str:
    """What JSON calls a value."""
    return _KINDS.get(type(value), "null")


_COMPLETIONS = ("response", "output", "answer", "chosen")
"""Names under which rows with a `prompt` keep its completion."""


def conversion_of(entry: dict[str, Any]) -> str | None:
    """Which other format a row looks like, and the command that makes lines of its file; None where it is like none."""
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
        if (answer := next((name for name in _COMPLETIONS if name in entry), None)) is not None:
            return _way(f"a prompt with its completion in `{answer}`", f"{{prompt, completion: .{answer}}}")
        name = "messages" if isinstance(entry["prompt"], list) else "text"
        return f"{_way('a prompt alone', f'{{{name}: .prompt}}')}; `logitcask generate` has the teacher answer it"
    return None


def _way(name: str, jq_filter: str) -> str:
    return f"It looks like {name}: jq -c '{jq_filter}' FILE makes lines of it"


BEYOND_TOKENS = "ids_beyond_tokenizer"
NOTES: dict[str, str] = {
    "blank_line": "blank lines were left out",
    "byte_order_mark": "a byte order mark inside the file was left out (were files joined?)",
    "bos_twice": "the text began with the token that the tokenizer puts in front; it stands there once",
    "eos_twice": "the text ended with the token that the tokenizer puts behind; it stands there once",
    "bos_inside": "the token that begins a text stands in the middle of one",
    "eos_inside": "the token that ends a text stands in the middle of one",
    "ids_bos_twice": "input_ids begin with the tokenizer's first token twice; they are taken as they are",
    "padding_removed": "padding was cut off, as attention_mask says",
    "looks_padded": "input_ids begin or end with the same token many times and have no attention_mask; kept",
    "no_answer": "labels trains no token of the row",
    "template_date": "the template wrote a date; it is the same fixed one in every run",
    "tools_dropped": "the template leaves the tools out",
    "system_dropped": "the template leaves the system message out",
    "reasoning_dropped": "the template leaves reasoning out",
    "tool_calls_dropped": "the template leaves tool calls out",
    "rendering_unproved": "it is not proved that the words of every message came out",
    "answers_unproved": "it is not proved which tokens are answers; none are marked",
    "answer_in_shared_token": "a completion begins within a token of its prompt; its answer begins behind that",
    "control_tokens_in_words": "the text of a control token in a message's words; it stays words",
    "weight_0": "a message has the weight 0 and is no answer",
    BEYOND_TOKENS: "the teacher puts mass on ids that are no tokens of its tokenizer; recorded as it is",
    "answer_cut_off": "all answers were behind max_length and are lost",
    "under_context": "documents are read by the teacher under a context that the student does not see",
    "piece_without_answer": "a piece of a split document has nothing to record and was left out",
}


def sentence_of(code: str) -> str:
    """The sentence for a code; the code itself where it is another version's."""
    return NOTES.get(code, code.replace("_", " "))
