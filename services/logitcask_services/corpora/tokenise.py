"""Lines of a corpus, of any form and in one batch, to tokens with their answers."""

from collections.abc import Sequence

from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.lines import ChatLine, ParsedLine, TextLine, TokenLine
from logitcask_services.corpora.spans import token_ranges
from logitcask_services.corpora.tokenizer import DocumentTokenizer, Tokenised


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
                recorded = None if line.recorded is None else [(start + 1, stop + 1) for start, stop in line.recorded]
                result[at] = Tokenised(token_ids=line.input_ids, answers=answers, recorded=recorded, notes=line.notes)
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
    notes: tuple[str, ...] = ()
    ranges = token_ranges(offsets, [(line.answer_start, len(line.text))])
    if ranges:
        # A token that also holds the prompt's last letters is not the completion's; white space in front of it may be.
        first, stop = ranges[0]
        while first < stop and line.text[offsets[first][0] : line.answer_start].strip():
            first += 1
        notes = ("answer_in_shared_token",) if first > ranges[0][0] else ()
        ranges[0] = (first, stop)
    if ranges and ranges[-1][1] < len(ids) and all(offset == (0, 0) for offset in offsets[ranges[-1][1] :]):
        ranges[-1] = (ranges[-1][0], len(ids))
    return Tokenised(token_ids=ids, answers=[span for span in ranges if span[0] < span[1]], notes=notes)
