"""The teacher's tokenizer as the service needs it: text to ids in batches, messages to text once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from logitcask_schemas.errors import ModelError
from logitcask_services.corpora.lines import LineProblem

TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template's expressions raise on messages they were not written for."""


class DocumentTokenizer(Protocol):
    """Text and messages to token ids."""

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Token ids of each text, with or without the special tokens the tokenizer adds by itself."""
        ...

    def render(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
        """The text of a conversation under the chat template. Raises LineProblem."""
        ...


class HuggingFaceTokenizer:
    """A `transformers` tokenizer; the Rust backend where there is one, without offsets and padding."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._backend is not None:
            self._backend.no_padding()
            self._backend.no_truncation()

    @classmethod
    def load(cls, folder: Path) -> "HuggingFaceTokenizer":
        """The tokenizer in a teacher's folder. Raises ModelError where there is none."""
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
        except Exception as error:  # the Rust backend raises bare Exception on a damaged file
            raise ModelError(
                f"the teacher folder {folder} has no tokenizer that loads: {type(error).__name__}: {error}. "
                "It needs tokenizer.json and tokenizer_config.json beside the weights."
            ) from error

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Token ids of each text."""
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
            return [encoding.ids for encoding in encodings]
        encoded: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=special_tokens)["input_ids"]
        return encoded

    def render(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
        """The text of a conversation under the chat template. Raises LineProblem."""
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise LineProblem(
                "no_chat_template",
                "the line has `messages`, but the teacher's tokenizer has no chat template; send `text` or `input_ids`",
            )
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        except (TemplateError, *TEMPLATE_FAULTS) as error:
            raise LineProblem("template_failed", f"the chat template refused the messages: {error}") from error
        return text
