"""Prompts: JSON lines in, token ids of the student's tokenizer out, and which of them a round has."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from logitcask_schemas.errors import LogitcaskError

_FORMS = "`prompt` (text or messages), `messages` or `input_ids`"


class PromptError(LogitcaskError, ValueError):
    """A file of prompts cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Prompts of a run."""

    ids: list[list[int]]
    too_long: int
    """Left out, because no text of the full length would fit behind them."""
    sha256: str
    """Of the file, hex."""

    def of_round(self, number: int, count: int | None, seed: int) -> list[int]:
        """Numbers of the prompts of a round, counted from 1: the next ones of an endless shuffled order."""
        total = len(self.ids)
        size = total if count is None else count
        first = (number - 1) * size
        passes = range(first // total, (first + size - 1) // total + 1)
        order = [int(prompt) for each in passes for prompt in np.random.default_rng([seed, each]).permutation(total)]
        start = first - passes.start * total
        return order[start : start + size]


def read_prompts(path: Path, tokenizer: Any, *, longest: int) -> Prompts:
    """Read a file of prompts.

    Args:
        path: JSON lines, see `RoundsConfig.prompts`.
        tokenizer: the student's.
        longest: most tokens of a prompt.

    Raises:
        PromptError: the file cannot be read, a line is none of the forms, or no prompt is left; names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PromptError(f"the prompts {path} cannot be read: {error.strerror}") from error
    ids, too_long = list[list[int]](), 0
    for where, entry in _entries(path, content):
        own = _tokens(entry, tokenizer, where)
        if not own:
            raise PromptError(f"{where}: the prompt has no token, and a student needs one to begin after")
        if len(own) > longest:
            too_long += 1
            continue
        ids.append(own)
    if not ids:
        why = f"all {too_long} are longer than {longest} tokens (seq_len + 1 - max_new_tokens)" if too_long else "none"
        raise PromptError(f"{path} holds no prompt that can be used: {why}. Expected JSON lines with {_FORMS}")
    return Prompts(ids=ids, too_long=too_long, sha256=hashlib.sha256(content).hexdigest())


def _entries(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{where}: is no JSON ({error}); expected an object with {_FORMS}") from error
        if not isinstance(entry, dict):
            raise PromptError(f"{where}: is a {type(entry).__name__}; expected an object with {_FORMS}")
        try:
            json.dumps(entry, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"{where}: holds half of a surrogate pair, which is no text; write it whole") from error
        yield where, entry


def _tokens(entry: dict[str, Any], tokenizer: Any, where: str) -> list[int]:
    forms = [name for name in ("prompt", "messages", "input_ids") if name in entry]
    if len(forms) != 1:
        raise PromptError(f"{where}: the object has {', '.join(sorted(entry)) or 'no field'}; expected one of {_FORMS}")
    value = entry[forms[0]]
    if forms[0] == "input_ids":
        width = len(tokenizer)
        if not isinstance(value, list) or not all(type(token) is int and 0 <= token < width for token in value):
            raise PromptError(f"{where}: `input_ids` should be a list of token ids below {width:,}")
        return value
    if isinstance(value, str) and forms[0] == "prompt":
        return list(tokenizer(value).input_ids)
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise PromptError(
            f"{where}: `{forms[0]}` should be {'text or ' if forms[0] == 'prompt' else ''}a list of messages"
        )
    if value and value[-1].get("role") == "assistant":
        raise PromptError(
            f"{where}: the last of `{forms[0]}` is the assistant's, and the student writes the turn after it: "
            "its answer would follow another. End with the user's message, or give `input_ids` for a text to continue"
        )
    if tokenizer.chat_template is None:
        raise PromptError(
            f"{where}: the student's tokenizer has no chat template; give `prompt` as text, or `input_ids`"
        )
    messages = [_message(message, f"{where}: `{forms[0]}[{at}]`") for at, message in enumerate(value)]
    try:
        rendered: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the model's makers, and raises what it likes
        raise PromptError(f"{where}: the chat template refuses these messages: {error}") from error
    return list(tokenizer(rendered, add_special_tokens=False).input_ids)


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A message with text as its content: templates leave out what is missing, or print it as Python would."""
    if not isinstance(message.get("role"), str) or not message["role"]:
        raise PromptError(f"{where} has no `role`; expected a string, such as user")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return message
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0].get("text", content)
    if not isinstance(content, str):
        raise PromptError(f"{where} has content of type {type(content).__name__}; write it as one string")
    return {**message, "content": content}
