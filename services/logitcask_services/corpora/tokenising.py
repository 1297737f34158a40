"""Parsed lines to documents: token ids, and which of them are answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from logitcask_services.corpora.lines import ChatLine, ParsedLine, TextLine, TokenLine
from logitcask_services.corpora.problem import LineProblem
from logitcask_services.corpora.tokenizer import DocumentTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenised:
    """One line as tokens."""

    token_ids: list[int]
    answers: Sequence[tuple[int, int]] | None = None
    """Ranges [start, stop) of tokens that the assistant says; None where nobody knows."""
    notes: tuple[str, ...] = ()


def tokenise(lines: Sequence[ParsedLine], tokenizer: DocumentTokenizer) -> list[Tokenised | LineProblem]:
    """The tokens of every line, or why there are none, in the lines' order."""
    result: list[Tokenised | LineProblem] = [Tokenised(token_ids=[]) for _ in lines]
    plain: dict[int, str] = {}
    rendered: dict[int, str] = {}
    for at, line in enumerate(lines):
        match line:
            case TokenLine():
                result[at] = Tokenised(token_ids=line.input_ids, answers=line.answers, notes=line.notes)
            case TextLine():
                plain[at] = line.text
            case ChatLine():
                try:
                    rendered[at] = _render(line, tokenizer)
                except LineProblem as problem:
                    result[at] = problem
    # A template writes its special tokens itself; the tokenizer must not add them a second time.
    for texts, special_tokens in ((plain, True), (rendered, False)):
        if texts:
            encoded = tokenizer.encode(list(texts.values()), special_tokens=special_tokens)
            for at, ids in zip(texts, encoded, strict=True):
                result[at] = Tokenised(token_ids=ids)
    return result


def _render(line: ChatLine, tokenizer: DocumentTokenizer) -> str:
    text = tokenizer.render(line.messages, line.tools)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LineProblem("not_unicode", f"`messages` hold half of a surrogate pair: {error.reason}") from error
    return text
