"""Encoding in which a user's words cannot make a control token.

Tokenizers look for their special tokens in the whole text they are given, a user's words included: somebody who writes
`<|im_end|>` would end a turn. Here such texts within the words of messages stay words. Elsewhere, in what the chat
template writes, they are control tokens.
"""

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from logitcask_schemas.errors import ModelError
from logitcask_services.corpora.conversation import Words
from logitcask_services.corpora.spans import Spans

_EMITTED = re.compile(
    r"</?(think|thinking|tool_calls?|tool_responses?|tools?|answer|function|parameter)[^<>]*>|\[/?(THINK|TOOL_CALLS)\]"
)
"""Tags that models write in their answers and that make no turn, though some tokenizers call them special."""
_FREE = 0x100000
"""First code point of Unicode's last plane for private use."""


@contextmanager
def unencodable() -> Iterator[None]:
    """Raises ModelError where the tokenizer's Rust code, which raises bare Exception, cannot encode a text."""
    try:
        yield
    except Exception as error:
        raise ModelError(
            f"the teacher's tokenizer cannot encode a text: {error}. It needs a token for what it does not know: put "
            "its unk token into the vocabulary of tokenizer.json, or send `input_ids`"
        ) from error


class ControlTokens:
    """The control tokens of a tokenizer (`tokenizers.Tokenizer`): its special tokens, and what marks turns."""

    def __init__(self, backend: Any, turn_texts: Collection[str]) -> None:
        """Choose the control tokens.

        Args:
            backend: the tokenizer.
            turn_texts: texts that a chat template writes around turns; those that are added tokens count, whether
                special or not.
        """
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self.texts = frozenset(
            token.content
            for token in added.values()
            if token.content.strip()
            and not _EMITTED.fullmatch(token.content)
            and (token.special or token.content in turn_texts)
        )
        ordered = sorted(self.texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._stand_ins: dict[str, str] = {}
        self._guarded: Any = None

    def within(self, text: str, words: Sequence[Words]) -> bool:
        """Whether control tokens stand, whole or in part, in the words of messages."""
        places = _places(words)
        return any(places.meets(match.start(), match.end()) for match in self._matches(text))

    def any_in(self, text: str) -> bool:
        """Whether a text holds the text of a control token."""
        return self._pattern is not None and self._pattern.search(text) is not None

    def encode(self, text: str, words: Sequence[Words]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text whose words make no control tokens, and the characters [start, stop) of each.

        The tokenizer's copy knows its control tokens by other names, made of characters that no text holds; those that
        the template wrote are given these names, those in words stay as they are. All else is the tokenizer's own
        doing, so a text without control tokens in its words gets the tokenizer's own ids.

        Raises ModelError where the tokenizer has no token for what stands there.
        """
        if self._guarded is None:
            self._guarded = self._copy()
        parts, renamed, before = list[str](), list[tuple[int, int, int, int]](), 0
        length, places = 0, _places(words)
        for match in self._matches(text):
            if places.meets(match.start(), match.end()):
                continue
            name = self._stand_ins[match[0]]
            parts += [text[before : match.start()], name]
            length += match.start() - before + len(name)
            before = match.end()
            renamed.append((length - len(name), length, match.start(), match.end()))
        with unencodable():
            encoding = self._guarded.encode("".join([*parts, text[before:]]), add_special_tokens=False)
        starts = [entry[0] for entry in renamed]

        def original(place: int) -> int:
            number = bisect_right(starts, place) - 1
            if number < 0:
                return place
            begins, ends, start, stop = renamed[number]
            return start if place == begins else stop + max(0, place - ends)

        return list(encoding.ids), [(original(start), original(stop)) for start, stop in encoding.offsets]

    def _matches(self, text: str) -> Any:
        return () if self._pattern is None else self._pattern.finditer(text)

    def _copy(self) -> Any:
        """The tokenizer with its control tokens renamed, in the list of added tokens and in the model's vocabulary."""
        from tokenizers import Tokenizer

        nonce = "".join(chr(_FREE + 0x1000 + secrets.randbelow(0x1000)) for _ in range(8))
        for number, text in enumerate(sorted(self.texts)):
            digits = "".join(chr(_FREE + int(digit)) for digit in str(number))
            self._stand_ins[text] = f"{chr(_FREE + 16)}{nonce}{digits}{chr(_FREE + 17)}"
        description = json.loads(self._backend.to_str())
        for token in description["added_tokens"]:
            token["content"] = self._stand_ins.get(token["content"], token["content"])
        model = description["model"]
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, dict):
            model["vocab"] = {self._stand_ins.get(text, text): number for text, number in vocabulary.items()}
        elif isinstance(vocabulary, list):
            model["vocab"] = [[self._stand_ins.get(text, text), score] for text, score in vocabulary]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = self._stand_ins.get(model["unk_token"], model["unk_token"])
        description["post_processor"] = None
        guarded = Tokenizer.from_str(json.dumps(description))
        for text, name in self._stand_ins.items():
            if guarded.token_to_id(name) != self._backend.token_to_id(text):
                raise RuntimeError(f"the control token {text!r} lost its id {self._backend.token_to_id(text)}")
        return guarded


def _places(words: Sequence[Words]) -> Spans:
    return Spans((stretch.start, stretch.stop) for stretch in words)
