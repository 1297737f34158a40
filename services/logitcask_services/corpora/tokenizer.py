"""The teacher's tokenizer as the service needs it: lines to token ids in batches, with the tokens of answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from logitcask_schemas.errors import ModelError
from logitcask_services.corpora.answers import TurnMarkers, UnprovedError, answer_ranges
from logitcask_services.corpora.control_tokens import ControlTokens, unencodable
from logitcask_services.corpora.conversation import ChatTemplate, Conversation, Words
from logitcask_services.corpora.lines import ChatLine, LineProblem
from logitcask_services.corpora.spans import Span, Spans, token_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenised:
    """A line as tokens."""

    token_ids: list[int]
    answers: list[Span] | None = None
    """Ranges [start, stop) of tokens that the assistant says, what ends its turns included; ascending, disjoint. None
    where the line does not tell."""
    recorded: list[Span] | None = None
    """Ranges of the tokens whose positions are recorded, where the line itself says so."""
    notes: tuple[str, ...] = ()
    """Codes of what was unusual, each once."""


class DocumentTokenizer(Protocol):
    """Text and messages to token ids."""

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Token ids of each text, with or without the special tokens the tokenizer adds by itself."""
        ...

    def encode_with_offsets(self, texts: Sequence[str], *, special_tokens: bool) -> list[tuple[list[int], list[Span]]]:
        """As `encode`, with the characters [start, stop) of each token."""
        ...

    def chat(self, lines: Sequence[ChatLine]) -> list[Tokenised | LineProblem]:
        """Tokens of each conversation under the chat template, with the assistant's."""
        ...

    def chat_prompt(self, messages: Sequence[Mapping[str, str]], *, prefix: str = "") -> list[int] | LineProblem:
        """Tokens of a conversation that the assistant is to go on with: the generation prompt stands at the end.

        Args:
            messages: `role` and `content` of each. No word of them becomes a control token, nor does one of `prefix`.
            prefix: how the assistant's answer begins.
        """
        ...

    def is_harmless(self, text: str, spans: Sequence[Span]) -> bool:
        """Whether no control token stands, whole or in part, in these characters [start, stop) of a text."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens, control tokens included."""
        ...

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the tokens that are no words."""
        ...

    @property
    def end_id(self) -> int | None:
        """Id of the token that ends a text; None where there is none."""
        ...


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model's folder, by transformers. Raises ModelError where there is none that loads."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the Rust backend raises bare Exception on a damaged file
        raise ModelError(
            f"the teacher folder {folder} has no tokenizer that loads: {type(error).__name__}: {error}. "
            "It needs tokenizer.json and tokenizer_config.json beside the weights."
        ) from error


class HuggingFaceTokenizer:
    """A `transformers` tokenizer; the Rust backend where there is one, without padding."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._backend is not None:
            self._backend.no_padding()
            self._backend.no_truncation()

    @classmethod
    def load(cls, folder: Path) -> "HuggingFaceTokenizer":
        """The tokenizer in a teacher's folder. Raises ModelError where there is none."""
        if not folder.is_dir():
            raise ModelError(
                f"{folder} is no folder; expected that of a teacher. A small one to start with: "
                "HuggingFaceTB/SmolLM2-135M-Instruct, from the Hugging Face Hub"
            )
        return cls(load_tokenizer(folder))

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Token ids of each text. Raises ModelError where the tokenizer has no token for something in one."""
        if self._backend is not None:
            with unencodable():
                encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
            return [encoding.ids for encoding in encodings]
        encoded: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=special_tokens)["input_ids"]
        return encoded

    def encode_with_offsets(self, texts: Sequence[str], *, special_tokens: bool) -> list[tuple[list[int], list[Span]]]:
        """Token ids of each text with their characters; a tokenizer without the Rust backend gives no characters.

        Raises ModelError as `encode`.
        """
        if self._backend is None:
            return [(ids, []) for ids in self.encode(texts, special_tokens=special_tokens)]
        with unencodable():
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=special_tokens)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def chat(self, lines: Sequence[ChatLine]) -> list[Tokenised | LineProblem]:
        """Tokens of each conversation; its words make no control tokens."""
        if self._tokenizer.chat_template is None:
            return [_no_template() for _ in lines]
        rendered = [self._render(line) for line in lines]
        plain: dict[int, str] = {}
        guarded: dict[int, Conversation] = {}
        for at, entry in enumerate(rendered):
            if isinstance(entry, Conversation):
                if self._control_tokens.within(entry.text, entry.words or []):
                    guarded[at] = entry
                else:
                    plain[at] = entry.text
        # A template writes its special tokens itself; the tokenizer must not add them a second time.
        encoded = dict(
            zip(plain, self.encode_with_offsets(list(plain.values()), special_tokens=False), strict=True)
            if plain
            else ()
        )
        for at, entry in guarded.items():
            encoded[at] = self._control_tokens.encode(entry.text, entry.words or [])
        return [
            entry
            if isinstance(entry, LineProblem)
            else self._tokenised(lines[at], entry, *encoded[at], guarded=at in guarded)
            for at, entry in enumerate(rendered)
        ]

    def chat_prompt(self, messages: Sequence[Mapping[str, str]], *, prefix: str = "") -> list[int] | LineProblem:
        """Tokens of a conversation with the generation prompt, and the beginning of an answer, behind it."""
        if self._tokenizer.chat_template is None:
            return _no_template()
        line = ChatLine(messages=[dict(message) for message in messages])
        rendered = self._render(line, prompt=True, prefix=prefix)
        if isinstance(rendered, LineProblem):
            return rendered
        if self._control_tokens.within(rendered.text, rendered.words or []):
            return self._control_tokens.encode(rendered.text, rendered.words or [])[0]
        return self.encode([rendered.text], special_tokens=False)[0]

    def is_harmless(self, text: str, spans: Sequence[Span]) -> bool:
        """Whether no control token stands, whole or in part, in these characters."""
        return not self._control_tokens.within(text, [Words(0, start, stop) for start, stop in spans])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens, control tokens included."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens."""
        added = self._tokenizer.added_tokens_decoder.items()
        return frozenset(self._tokenizer.all_special_ids) | {number for number, token in added if token.special}

    @property
    def end_id(self) -> int | None:
        """The tokenizer's EOS."""
        number: int | None = self._tokenizer.eos_token_id
        return number

    def _render(self, line: ChatLine, *, prompt: bool = False, prefix: str = "") -> Conversation | LineProblem:
        try:
            conversation = self._template.render(line, prompt=prompt)
            if prefix:
                conversation = conversation.continued(prefix)
            conversation.text.encode("utf-8")
            self._require_harmless(line, conversation)
        except UnicodeEncodeError as error:
            return LineProblem("not_unicode", f"`messages` hold half of a surrogate pair: {error.reason}")
        except RecursionError:
            return LineProblem("nested_too_deeply", "`messages` or `tools` are nested too deeply to be rendered")
        except LineProblem as problem:
            return problem
        return conversation

    def _require_harmless(self, line: ChatLine, conversation: Conversation) -> None:
        """Raise LineProblem where a control token stands in what cannot be told from the template's own text."""
        holders = [("messages", message.get(name)) for message in line.messages for name in ("role", "name")]
        holders += [("chat_template_kwargs", value) for value in (line.template_kwargs or {}).values()]
        if conversation.words is None:
            holders += [("messages", message["content"]) for message in conversation.messages]
            holders += [("tools", repr(line.tools or ""))]
        for name, value in holders:
            if isinstance(value, str) and self._control_tokens.any_in(value):
                raise LineProblem(
                    "control_tokens", f"`{name}` hold the text of a control token where it would become one; remove it"
                )

    def _tokenised(
        self, line: ChatLine, conversation: Conversation, ids: list[int], offsets: list[Span], *, guarded: bool
    ) -> Tokenised:
        notes = set(conversation.notes) | ({"control_tokens_in_words"} if guarded else set())
        answers: list[Span] = []
        try:
            if not offsets and ids:
                raise UnprovedError
            ranges = answer_ranges(conversation, self._markers, first_message=line.first_answer)
            tokens = token_ranges(offsets, ranges)
            _require_own_tokens(conversation, ranges, tokens, offsets)
            answers = tokens
        except UnprovedError:
            notes.add("answers_unproved")
        if any(message.get("weight", 1) == 0 for message in conversation.messages):
            notes.add("weight_0")
        return Tokenised(token_ids=ids, answers=answers, notes=tuple(sorted(notes)))

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._tokenizer)

    @cached_property
    def _markers(self) -> TurnMarkers:
        return TurnMarkers(self._template)

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        if self._backend is None:
            raise ModelError(
                "this tokenizer has no tokenizer.json, so `messages` cannot be encoded without control tokens in the "
                "words of users becoming real ones; convert it with transformers, or send `input_ids`"
            )
        return ControlTokens(self._backend, self._markers.control_texts)


def _require_own_tokens(
    conversation: Conversation, ranges: Sequence[Span], answers: Sequence[Span], offsets: Sequence[Span]
) -> None:
    """Raise UnprovedError where the first or last token of an answer also holds words outside of it.

    Between two messages that a template writes without anything between, a tokenizer may make one token of both.
    """
    words = Spans((stretch.start, stretch.stop) for stretch in conversation.words or ())
    answered = Spans(ranges)
    for first, stop in answers:
        for start, end in (offsets[first], offsets[stop - 1]):
            for begins, ends in words.meeting(start, end):
                shared = max(start, begins), min(end, ends)
                inside = (low <= shared[0] and shared[1] <= high for low, high in answered.meeting(*shared))
                if shared[0] < shared[1] and not any(inside):
                    raise UnprovedError


def _no_template() -> LineProblem:
    return LineProblem(
        "no_chat_template",
        "the line has `messages`, but the teacher's tokenizer has no chat template; send `text` or `input_ids`",
    )


_PROBE = "x"


@dataclass(frozen=True, slots=True)
class OwnTokens:
    """What the tokenizer adds."""

    before: list[int]
    behind: list[int]

    @classmethod
    def of(cls, tokenizer: DocumentTokenizer) -> "OwnTokens":
        """Found out from a text of one letter."""
        bare = tokenizer.encode([_PROBE], special_tokens=False)[0]
        whole = tokenizer.encode([_PROBE], special_tokens=True)[0]
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return cls(whole[:start], whole[start + len(bare) :])
        return cls([], [])

    def typed(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """How many tokens the text of an encoded document repeats: right behind `before`, right before `behind`."""
        start, stop = len(self.before), len(token_ids) - len(self.behind)
        first, last = start, stop
        while size := self._repeated(token_ids, first, stop, self.before, at_start=True):
            first += size
        while size := self._repeated(token_ids, first, last, self.behind, at_start=False):
            last -= size
        return first - start, stop - last

    @staticmethod
    def _repeated(token_ids: Sequence[int], start: int, stop: int, own: list[int], *, at_start: bool) -> int:
        """Size of the largest part of `own`, its end or its beginning, that stands at an edge of the text."""
        for size in range(min(len(own), stop - start), 0, -1):
            if at_start and list(token_ids[start : start + size]) == own[-size:]:
                return size
            if not at_start and list(token_ids[stop - size : stop]) == own[:size]:
                return size
        return 0

    def once(self, token_ids: list[int]) -> tuple[list[int], int, tuple[str, ...]]:
        """The ids with each of the own tokens once, tokens taken out before the text, and notes."""
        front, back = self.typed(token_ids)
        start, stop = len(self.before), len(token_ids) - len(self.behind)
        text = token_ids[start + front : stop - back]
        notes = ["bos_twice"] * bool(front) + ["eos_twice"] * bool(back)
        notes += ["bos_inside"] * any(token in text for token in self.before)
        notes += ["eos_inside"] * any(token in text for token in self.behind if token not in self.before)
        if not front and not back:
            return token_ids, 0, tuple(notes)
        return [*self.before, *text, *self.behind], front, tuple(notes)
