"""Documents as the page and its JSON interface show them: a list, a search, and one document's tokens."""

from bisect import bisect_right
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from logitcask_schemas.cask.describe import find_document
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.errors import CaskNotFoundError
from logitcask_services.http.pages.viewer.texts import TokenTexts
from logitcask_services.http.pages.viewer.tokens import TokenWindow, token_window

PAGE_DOCUMENTS: Final = 25
BEGINNING_TOKENS: Final = 40
SEARCHED_TOKENS: Final = 500_000
"""That one request looks through; the answer says where to go on."""
BEFORE_MATCH, AFTER_MATCH = 40, 80
_FIRST_HEX_DIGITS: Final = 8


class DocumentLine(BaseModel):
    """A document in a list."""

    number: int
    id: str
    tokens: int
    recorded: int
    """Positions with a record."""
    mean_entropy: float
    """Over these, in nats."""
    text: str
    """Its beginning, or the place that was searched for."""


class DocumentPage(BaseModel):
    """A part of the list."""

    documents: list[DocumentLine]
    total: int
    """Of the cask."""
    next: int | None
    """Number of the document to go on from; None at the end."""
    searched: int | None = None
    """How many documents were looked through, of a search."""


class Entry(BaseModel):
    """A token of a head."""

    id: int
    text: str
    probability: float


class Draw(BaseModel):
    """A token that was drawn from outside the head."""

    id: int
    text: str
    count: int


class Token(BaseModel):
    """A token, and what the teacher thought before it. Without a record all figures are null."""

    at: int
    id: int
    text: str
    answer: bool | None
    entropy: float | None
    probability: float | None
    tail_mass: float | None
    kl: float | None = None
    """Of a student from the teacher, in nats, where scores of one are given."""
    head: list[Entry]
    draws: list[Draw]


class DocumentWindow(BaseModel):
    """Some tokens of a document."""

    cask: str
    number: int
    id: str
    tokens: int
    recorded: int
    recorded_before: int
    """Positions with a record that predict tokens before `start`."""
    context: int
    start: int
    stop: int
    has_texts: bool
    """Whether texts are those of a tokenizer; otherwise they are ids."""
    entropy_is_bound: bool
    rows: list[Token]


def list_documents(cask: Cask, texts: TokenTexts | None, start: int) -> DocumentPage:
    """Documents from number `start`, at most PAGE_DOCUMENTS. Raises CaskNotFoundError where it is out of range."""
    total = len(cask)
    if not 0 <= start <= total:
        raise CaskNotFoundError(f"{cask.place}: documents from {start}; there are {total}")
    stop = min(start + PAGE_DOCUMENTS, total)
    lines = [_line(cask, texts, number) for number in range(start, stop)]
    return DocumentPage(documents=lines, total=total, next=stop if stop < total else None)


def search_documents(cask: Cask, texts: TokenTexts | None, query: str, start: int) -> DocumentPage:
    """Documents whose text holds the query, letters large or small, or the one whose id or number it is.

    Looks at SEARCHED_TOKENS tokens from document `start` at most; `next` says where to go on.
    """
    total, needle = len(cask), query.strip().casefold()
    by_name = _by_name(cask, needle) if start == 0 else None
    if by_name is not None:
        return DocumentPage(documents=[_line(cask, texts, by_name)], total=total, next=None, searched=1)
    lines: list[DocumentLine] = []
    if texts is None or not needle:
        return DocumentPage(documents=lines, total=total, next=None, searched=0)
    budget, number = SEARCHED_TOKENS, start
    while number < total and budget > 0 and len(lines) < PAGE_DOCUMENTS:
        token_ids = cask.read(number).token_ids_L
        budget -= len(token_ids)
        text = texts.whole(token_ids.tolist())
        if (folded := text.casefold().find(needle)) >= 0:
            # Folded letters may be more than they were: one sharp s is two s.
            at = bisect_right(range(len(text)), folded, key=lambda stop: len(text[:stop].casefold())) - 1
            around = text[max(0, at - BEFORE_MATCH) : at + len(needle) + AFTER_MATCH]
            lines.append(_line(cask, texts, number, around))
        number += 1
    return DocumentPage(documents=lines, total=total, next=number if number < total else None, searched=number - start)


def _by_name(cask: Cask, query: str) -> int | None:
    """The document whose number or leading hex digits a query is; None where it names none."""
    is_id = len(query) >= _FIRST_HEX_DIGITS and all(digit in "0123456789abcdef" for digit in query)
    if not is_id and not (query.isascii() and query.isdecimal()):
        return None
    try:
        return find_document(cask, query)
    except CaskNotFoundError:
        return None  # then it is looked for in the texts


def _line(cask: Cask, texts: TokenTexts | None, number: int, text: str | None = None) -> DocumentLine:
    document = cask.read(number)
    if text is None:
        first = document.token_ids_L[:BEGINNING_TOKENS].tolist()
        text = texts.whole(first) if texts is not None else " ".join(map(str, first))
    return DocumentLine(
        number=number,
        id=document.id.hex(),
        tokens=len(document.token_ids_L),
        recorded=document.records.num_positions,
        mean_entropy=float(document.records.entropy_P.astype(np.float64).mean()),
        text=text,
    )


def document_window(
    cask: Cask, name: str, texts: TokenTexts | None, number: int, *, start: int, count: int
) -> DocumentWindow:
    """Tokens [start, start + count) of a document. Raises CaskNotFoundError where there are none."""
    try:
        window = token_window(cask, number, start, count)
    except IndexError as error:
        raise CaskNotFoundError(str(error)) from error
    pieces = _pieces(window, texts)
    return DocumentWindow(
        cask=name,
        number=number,
        id=window.id,
        tokens=window.num_tokens,
        recorded=window.num_recorded,
        recorded_before=window.recorded_before,
        context=window.context,
        start=window.start,
        stop=window.stop,
        has_texts=texts is not None,
        entropy_is_bound=cask.manifest.capture.entropy_is_bound,
        rows=[_token(window, row, piece, texts) for row, piece in enumerate(pieces)],
    )


def _pieces(window: TokenWindow, texts: TokenTexts | None) -> list[str]:
    ids = window.token_ids_W.tolist()
    return [str(token) for token in ids] if texts is None else texts.pieces(ids)


def _token(window: TokenWindow, row: int, piece: str, texts: TokenTexts | None) -> Token:
    name = str if texts is None else texts.of
    head_ids, probabilities = window.head(row)
    draw_ids, counts = window.draws(row)
    return Token(
        at=window.start + row,
        id=int(window.token_ids_W[row]),
        text=piece,
        answer=None if window.answer_W is None else bool(window.answer_W[row]),
        entropy=_number(window.entropy_W, row),
        probability=_number(window.probability_W, row),
        tail_mass=_number(window.tail_mass_W, row),
        head=[
            Entry(id=token, text=name(token), probability=probability)
            for token, probability in zip(head_ids.tolist(), probabilities.tolist(), strict=True)
        ],
        draws=[
            Draw(id=token, text=name(token), count=count)
            for token, count in zip(draw_ids.tolist(), counts.tolist(), strict=True)
        ],
    )


def _number(values_W: NDArray[np.float64], row: int) -> float | None:
    value = float(values_W[row])
    return None if np.isnan(value) else value
