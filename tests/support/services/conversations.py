"""Conversations under templates of our own, and what became of them."""

import json
from typing import Any

from logitcask_services.corpora.lines import ChatLine, parse_line
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from tests.support.services.chat_templates import tokenizer_for

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TWO_TURNS = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "I am fine"},
    {"role": "user", "content": "what is Paris"},
    {"role": "assistant", "content": "a capital"},
]
CALL = {"id": "123456789", "type": "function", "function": {"name": "find_city", "arguments": '{"town": "Lutetia"}'}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "seventy", "tool_call_id": "123456789"},
    {"role": "assistant", "content": "a capital"},
]


def conversation(entry: dict[str, Any]) -> ChatLine:
    """The entry as a line of a corpus."""
    line = parse_line(json.dumps(entry).encode())
    assert isinstance(line, ChatLine)
    return line


def result_of(template: str, messages: list[Any], *, plain: Any = None, **line: Any) -> Any:
    """What a line of these messages gives: `Tokenised` or `LineProblem`."""
    tokenizer = HuggingFaceTokenizer(plain or tokenizer_for(template))
    return tokenizer.chat([conversation({"messages": messages, **line})])[0]


def text_of(template: str, result: Any) -> str:
    """The result as text."""
    return str(tokenizer_for(template).decode(result.token_ids))


def answers_of(template: str, messages: list[Any], **line: Any) -> list[str]:
    """The answers' texts."""
    plain, result = tokenizer_for(template), result_of(template, messages, **line)
    return [plain.decode(result.token_ids[start:stop]) for start, stop in result.answers]
