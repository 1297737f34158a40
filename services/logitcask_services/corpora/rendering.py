"""Parsed lines to tokens, a batch at a time: plain text, conversations and ids each in their way."""

from collections.abc import Sequence

from logitcask_services.corpora.lines import ChatLine, LineProblem, ParsedLine, TextLine, TokenLine
from logitcask_services.corpora.tokenizer import DocumentTokenizer, Tokenised, token_ranges


def tokenise(lines: Sequence[ParsedLine], tokenizer: DocumentTokenizer) -> list[Tokenised | LineProblem]:
    """Tokens of every line, or why there are none, in their order."""
    result: list[Tokenised | LineProblem] = [Tokenised(token_ids=[]) for _ in lines]
    texts: dict[int, TextLine] = {}
    completions: dict[int, TextLine] = {}
    chats: dict[int, ChatLine] = {}
    for at, line in enumerate(lines):
        match line:
            case TokenLine():
                answers = None if line.answers is None else list(line.answers)
                result[at] = Tokenised(token_ids=line.input_ids, answers=answers, notes=line.notes)
            case TextLine(answer_start=None):
                texts[at] = line
            case TextLine():
                completions[at] = line
            case ChatLine():
                chats[at] = line
    if texts:
        encoded = tokenizer.encode([line.text for line in texts.values()], special_tokens=True)
        for at, ids in zip(texts, encoded, strict=True):
            result[at] = Tokenised(token_ids=ids)
    if completions:
        with_offsets = tokenizer.encode_with_offsets([line.text for line in completions.values()], special_tokens=True)
        for (at, line), (ids, offsets) in zip(completions.items(), with_offsets, strict=True):
            result[at] = _completed(line, ids, offsets)
    if chats:
        for at, tokenised in zip(chats, tokenizer.chat(list(chats.values())), strict=True):
            result[at] = tokenised
    return result


def _completed(line: TextLine, ids: list[int], offsets: list[tuple[int, int]]) -> Tokenised:
    """A prompt and its completion; a special token that the tokenizer puts at the end is part of the completion."""
    assert line.answer_start is not None
    if not offsets:
        return Tokenised(token_ids=ids, answers=[], notes=("answers_unproved",))
    ranges = token_ranges(offsets, [(line.answer_start, len(line.text))])
    if ranges and ranges[-1][1] < len(ids) and all(offset == (0, 0) for offset in offsets[ranges[-1][1] :]):
        ranges[-1] = (ranges[-1][0], len(ids))
    return Tokenised(token_ids=ids, answers=ranges)
