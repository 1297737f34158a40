"""What preparation would make of a corpus, for people: some documents with their answers, and every count.

The same code prepares a corpus for capture; here its token store is read and thrown away.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, Literal

from logitcask_services.corpora.prepare import BadLine, DocumentLimits, Prepared, prepare
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.corpora.tokenizer import DocumentTokenizer

SHOWN_TOKENS = 4096
"""Of one document."""
SHOWN_BAD = 20
PieceKind = Literal["text", "answer", "control", "answer_control"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of tokens of one kind, as text."""

    kind: PieceKind
    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDocument:
    """A document as the student will see it."""

    line: int
    tokens: int
    answer_tokens: int | None
    """None where the line does not tell what is an answer."""
    pieces: list[Piece]
    cut: bool
    """Whether more tokens follow than are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a corpus, or its beginning, gives."""

    prepared: Prepared
    documents: list[ShownDocument]
    bad: list[BadLine]
    """The first ones."""
    bad_by_code: dict[str, int]


def preview(
    corpus: Path,
    scratch: Path,
    tokenizer: DocumentTokenizer,
    limits: DocumentLimits,
    *,
    documents: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Preview:
    """Prepare a corpus and describe the result.

    Args:
        corpus: JSON lines.
        scratch: A folder that does not exist; the caller deletes it.
        tokenizer: The teacher's.
        limits: As for an extraction.
        documents: How many are shown: the first one, the first ones of everything unusual, then the next ones.
        stopped: Whether to give up.

    Raises:
        PreparationStoppedError: `stopped()` turned true.
        NotJsonLinesError: The file is of another format.
        OSError: The disk is full.
    """
    bad: list[BadLine] = []
    by_code: dict[str, int] = {}

    def report(entries: list[BadLine]) -> None:
        bad.extend(entries[: SHOWN_BAD - len(bad)])
        for entry in entries:
            by_code[entry.code] = by_code.get(entry.code, 0) + 1

    prepared = prepare(corpus, scratch, tokenizer, limits, report=report, stopped=stopped)
    store = TokenStore(scratch)
    shown = [_shown(store, number, tokenizer) for number in _chosen(store, prepared, documents)]
    return Preview(prepared=prepared, documents=shown, bad=bad, bad_by_code=by_code)


def _chosen(store: TokenStore, prepared: Prepared, most: int) -> list[int]:
    """Documents to show, in order: the first, the first of each unusual kind, their seconds and so on, the rest."""
    kinds = [prepared.examples.get(code, []) for code in (*prepared.notes, "truncated", "split")]
    unusual = [line for lines in zip_longest(*kinds) for line in lines if line is not None]
    wanted = (0, *(store.first_document_of(line) for line in unusual), *range(most))
    there = [number for number in dict.fromkeys(wanted) if number is not None and number < store.num_documents]
    return sorted(there[:most])


def _shown(store: TokenStore, document: int, tokenizer: DocumentTokenizer) -> ShownDocument:
    token_ids: list[int] = store.tokens(document).tolist()
    ranges = store.answers(document)
    answers: list[list[int]] = [] if ranges is None else ranges.tolist()
    answered = {token for start, stop in answers for token in range(start, min(stop, SHOWN_TOKENS))}
    control = tokenizer.control_ids

    def kind(at: int) -> PieceKind:
        if token_ids[at] in control:
            return "answer_control" if at in answered else "control"
        return "answer" if at in answered else "text"

    pieces = []
    for name, group in groupby(range(min(len(token_ids), SHOWN_TOKENS)), kind):
        run = list(group)
        text = _text(tokenizer, token_ids, run[0], run[-1] + 1)
        pieces.append(Piece(kind=name, text=text, tokens=len(run)))
    return ShownDocument(
        line=store.line(document)[0],
        tokens=len(token_ids),
        answer_tokens=None if ranges is None else sum(stop - start for start, stop in answers),
        pieces=pieces,
        cut=len(token_ids) > SHOWN_TOKENS,
    )


def _text(tokenizer: DocumentTokenizer, token_ids: list[int], start: int, stop: int) -> str:
    """The text of a run of tokens; with the token before it, as decoders drop a space at the beginning."""
    if start == 0:
        return tokenizer.decode(token_ids[:stop])
    before, both = tokenizer.decode(token_ids[start - 1 : start]), tokenizer.decode(token_ids[start - 1 : stop])
    return both.removeprefix(before) if both.startswith(before) else tokenizer.decode(token_ids[start:stop])


def as_dict(found: Preview) -> dict[str, Any]:
    """The preview as JSON values."""
    prepared = found.prepared
    return {
        "lines": prepared.lines,
        "documents": prepared.documents,
        "tokens": prepared.tokens,
        "bad_lines": prepared.bad_lines,
        "skipped_lines": prepared.skipped_lines,
        "truncated_lines": prepared.truncated_lines,
        "split_lines": prepared.split_lines,
        "bad_by_code": found.bad_by_code,
        "notes": prepared.notes,
        "first_lines": prepared.examples,
        "bad": [{"line": entry.line, "code": entry.code, "message": entry.message} for entry in found.bad],
        "shown": [
            {
                "line": document.line,
                "tokens": document.tokens,
                "answer_tokens": document.answer_tokens,
                "pieces": [asdict(piece) for piece in document.pieces],
                "cut": document.cut,
            }
            for document in found.documents
        ],
    }
