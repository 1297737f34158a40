"""From a template and a row to the token ids of a prompt.

Shape legend: C tokens of a prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from logitcask_schemas.record.extent import IdArray
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.tokenizer import DocumentTokenizer, OwnTokens
from logitcask_services.generation.rows import Refusal, Row
from logitcask_services.generation.templates import PromptTemplate, Rendered, RenderError

Values = Mapping[str, Any]
"""Fields of a row: JSON values."""
_NO_CHAT: Final = "the teacher's tokenizer has no chat template; use a template of kind text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatParts:
    """A rendered chat, as the tokenizer takes it."""

    messages: list[dict[str, str]]
    """`role` and `content`."""
    prefix: str
    """How the assistant's answer begins; empty where the chat does not end with a turn of the assistant's."""


def chat_parts(template: PromptTemplate, values: Values, demonstrations: Sequence[Values] = ()) -> ChatParts:
    """The messages of a `chat` template. Raises RenderError."""
    turns = template.turns(values, demonstrations)
    prefix = ""
    if turns[-1].role == "assistant":
        prefix = turns.pop().content.text
    return ChatParts(messages=[{"role": turn.role, "content": turn.content.text} for turn in turns], prefix=prefix)


@dataclass(frozen=True)
class Prompter:
    """Makes prompts for one teacher."""

    tokenizer: DocumentTokenizer
    max_model_len: int
    """Most tokens of a prompt with what comes after it."""
    _own: OwnTokens = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find out what the tokenizer adds by itself."""
        object.__setattr__(self, "_own", OwnTokens.of(self.tokenizer))

    def prompt_ids(self, template: PromptTemplate, values: Values, demonstrations: Sequence[Values] = ()) -> list[int]:
        """The token ids of a prompt, of any length.

        A chat is rendered with the teacher's chat template, the generation prompt and the beginning of an answer, if
        any, at its end. A text has the tokenizer's own special tokens in front and none behind. No field's words become
        control tokens: those of a chat stay words, in a text they are refused. Token ids are taken as they are.

        Raises:
            RenderError: codes `unknown_field`, `not_token_ids`, `template_failed`, `control_tokens`,
                `no_chat_template`, or the tokenizer's own for messages that it cannot take.
        """
        if template.kind == "ids":
            return template.ids(values)
        if template.kind == "text":
            return self._text_ids(template, template.text(values, demonstrations))
        parts = chat_parts(template, values, demonstrations)
        ids = self.tokenizer.chat_prompt(parts.messages, prefix=parts.prefix)
        if isinstance(ids, LineProblem):
            message = _NO_CHAT if ids.code == "no_chat_template" else ids.message
            raise RenderError(ids.code, f"template {template.name}: {message}")
        return ids

    def prompt(
        self,
        template: PromptTemplate,
        values: Values,
        demonstrations: Sequence[Values] = (),
        *,
        room: int,
        where: str,
    ) -> IdArray | Refusal:
        """A prompt that leaves room for what comes after it, uint32 [C].

        Args:
            template: what to render.
            values: fields of the row.
            demonstrations: fields of each.
            room: tokens that come after it.
            where: begins messages: which row, which step.
        """
        try:
            ids = self.prompt_ids(template, values, demonstrations)
        except RenderError as error:
            return Refusal(code=error.code, message=f"{where}: {error}")
        if not ids:
            return Refusal(code="empty_prompt", message=f"{where}: template {template.name} gives an empty prompt")
        if len(ids) + room > self.max_model_len:
            return Refusal(
                code="prompt_too_long",
                message=f"{where}: the prompt of template {template.name} has {len(ids)} tokens; the teacher's "
                f"window of {self.max_model_len} less {room} to be written or scored leaves "
                f"{self.max_model_len - room}. Shorten the row, show fewer demonstrations, or lower max_tokens",
            )
        return np.array(ids, dtype=np.uint32)

    def words_ids(self, text: str, *, name: str) -> list[int]:
        """The token ids of a text that stands behind a prompt, without special tokens.

        Raises:
            RenderError: code `control_tokens`: the text holds one's; `name` says whose it is.
        """
        self._require_harmless(Rendered(text, ((0, len(text)),)), name)
        return self.tokenizer.encode([text], special_tokens=False)[0]

    def _text_ids(self, template: PromptTemplate, rendered: Rendered) -> list[int]:
        self._require_harmless(rendered, f"template {template.name}: a field")
        ids = self.tokenizer.encode([rendered.text], special_tokens=True)[0]
        return ids[: len(ids) - len(self._own.behind)]

    def _require_harmless(self, rendered: Rendered, name: str) -> None:
        try:
            rendered.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RenderError("not_unicode", f"{name} holds half of a surrogate pair: {error.reason}") from error
        if not self.tokenizer.is_harmless(rendered.text, rendered.field_spans):
            raise RenderError(
                "control_tokens", f"{name} holds the text of a control token where it would become one; remove it"
            )


def place_of(row: Row, step: int, kind: str) -> str:
    """Which row and step a message is about."""
    line = f"line {row.line}" if row.line else f"grown row {row.id[:12]}"
    return f"{line}, step {step} ({kind})"
