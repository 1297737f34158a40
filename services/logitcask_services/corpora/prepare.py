"""From an uploaded corpus to a token store: read line by line, tokenise in batches, fit, report what is bad."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from logitcask_schemas.api.objects import Failure
from logitcask_schemas.api.requests import LossOn, Overflow
from logitcask_services.corpora.context_tokens import ContextTokens, context_of, require_answers_alike
from logitcask_services.corpora.corpus_lines import CorpusLines
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.lines import (
    ParsedLine,
    TextLine,
    TokenLine,
    parse_line,
    under_context,
)
from logitcask_services.corpora.pieces import cut_spans, extent_of, fit, fit_under, trained_tokens
from logitcask_services.corpora.token_store import TokenStoreWriter
from logitcask_services.corpora.tokenise import tokenise
from logitcask_services.corpora.tokenizer import DocumentTokenizer, OwnTokens, Tokenised

BATCH_LINES = 1024
BATCH_BYTES = 4 << 20
LONGEST_MESSAGE = 500
EXAMPLES = 3
"""First lines that are kept for each code."""


NameDocument = Callable[[str | None, int, int, bytes, int], None]
"""Hears of a document: `custom_id` and number of its line, which piece of it, identity, tokens."""


class PreparationStoppedError(Exception):
    """The caller asked to stop; nothing was published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLimits:
    """What a document may be."""

    vocab_size: int
    max_length: int
    """Tokens."""
    window: int
    """Most tokens that the teacher reads at once."""
    loss_on: LossOn = "all"
    overflow: Overflow
    max_line_bytes: int


@dataclass(slots=True, kw_only=True)
class Prepared:
    """What preparation found."""

    lines: int = 0
    documents: int = 0
    tokens: int = 0
    recorded_positions: int = 0
    context_tokens: int = 0
    """Read before documents, as often as they are read."""
    bad_lines: int = 0
    skipped_lines: int = 0
    """Too long under the policy `skip`: reported, but as asked, so not bad."""
    truncated_lines: int = 0
    split_lines: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    """Code of what is unusual to the number of documents, or lines, of which it is true; see `notes`."""
    examples: dict[str, list[int]] = field(default_factory=dict)
    """Code (of a note or of a bad line, `truncated`, `split`) to the first lines it concerns."""

    def note(self, code: str, line: int) -> None:
        """Count something unusual."""
        self.notes[code] = self.notes.get(code, 0) + 1
        self.example(code, line)

    def example(self, code: str, line: int) -> None:
        """Remember a line, while few are."""
        lines = self.examples.setdefault(code, [])
        if len(lines) < EXAMPLES and line not in lines:
            lines.append(line)


@dataclass(slots=True)
class _Batch:
    """Parsed lines waiting for the tokenizer, with number and first byte."""

    lines: list[tuple[int, int, ParsedLine]] = field(default_factory=list)
    bytes: int = 0

    def full(self) -> bool:
        return len(self.lines) >= BATCH_LINES or self.bytes >= BATCH_BYTES


def prepare(
    corpus: Path,
    target: Path,
    tokenizer: DocumentTokenizer,
    limits: DocumentLimits,
    *,
    report: Callable[[list[Failure]], None],
    stopped: Callable[[], bool],
    named: NameDocument | None = None,
) -> Prepared:
    """Write the token store of `corpus` at `target`; bad lines go to `report` in batches, in order of their lines.

    `named` hears of every document. Memory is bounded by one batch of lines.

    Raises:
        PreparationStoppedError: `stopped()` turned true.
        NotJsonLinesError: The file is of another format as a whole.
        OSError: The disk is full.
    """
    counts = Prepared()
    own = OwnTokens.of(tokenizer)
    with TokenStoreWriter(target) as store:
        batch, bad = _Batch(), list[Failure]()

        def flush() -> None:
            nonlocal batch
            if stopped():
                raise PreparationStoppedError
            _store_batch(batch, tokenizer, own, limits, store, counts, bad, named)
            bad.sort(key=lambda entry: entry.line)
            if bad:
                report(list(bad))
            bad.clear()
            batch = _Batch()

        lines = CorpusLines(corpus, limits.max_line_bytes)
        for number, start, content in lines:
            try:
                if content is None:
                    raise LineProblem(
                        "line_too_long",
                        f"the line is longer than {limits.max_line_bytes} bytes, the most this service reads",
                    )
                batch.lines.append((number, start, parse_line(content)))
                batch.bytes += len(content)
            except LineProblem as problem:
                counts.bad_lines += 1
                counts.example(problem.code, number)
                bad.append(_bad(number, problem))
            if batch.full() or len(bad) >= BATCH_LINES:
                flush()
        flush()
        store.finish()
        counts.documents, counts.tokens, counts.lines = store.documents, store.tokens, lines.lines
        counts.recorded_positions, counts.context_tokens = store.recorded_positions, store.context_tokens
        unusual = {"blank_line": lines.blank_lines, "byte_order_mark": lines.marked_lines}
        counts.notes |= {code: count for code, count in unusual.items() if count}
    return counts


def _store_batch(
    batch: _Batch,
    tokenizer: DocumentTokenizer,
    own: OwnTokens,
    limits: DocumentLimits,
    store: TokenStoreWriter,
    counts: Prepared,
    bad: list[Failure],
    named: NameDocument | None,
) -> None:
    lines = [line for _, _, line in batch.lines]
    read = {at: whole for at, line in enumerate(lines) if (whole := under_context(line)) is not None}
    tokenised = tokenise([*lines, *read.values()], tokenizer)
    teachers = dict(zip(read, tokenised[len(lines) :], strict=True))
    for at, (number, start, line) in enumerate(batch.lines):
        try:
            document = _sound(line, tokenised[at], own, limits.vocab_size)
            context = None
            if at in read:
                document, context = _under_context(line, document, read[at], teachers[at], own, limits.vocab_size)
            for piece, (identity, tokens) in enumerate(
                _store(line, document, context, limits, store, counts, (number, start))
            ):
                if named is not None:
                    named(line.custom_id, number, piece, identity, tokens)
        except LineProblem as problem:
            problem.custom_id = line.custom_id
            if problem.code == "too_long":
                counts.skipped_lines += 1
            else:
                counts.bad_lines += 1
            counts.example(problem.code, number)
            bad.append(_bad(number, problem))


def _under_context(
    line: ParsedLine,
    document: Tokenised,
    read: ParsedLine,
    tokens_read: Tokenised | LineProblem,
    own: OwnTokens,
    vocab_size: int,
) -> tuple[Tokenised, ContextTokens]:
    """A document with what is unusual about it under its context, and that context. Raises LineProblem."""
    try:
        whole = _sound(read, tokens_read, own, vocab_size)
    except LineProblem as problem:
        raise LineProblem(problem.code, f"with its context in front: {problem.message}") from problem
    if isinstance(line, TokenLine) and line.context_ids is not None:
        ids_C = np.array(line.context_ids, dtype=np.uint32)  # the line itself says where the two begin to be alike
        context = ContextTokens(token_ids_C=ids_C, replaced=line.context_replaces)
    else:
        context = context_of(whole.token_ids, document.token_ids)
    front = len(own.before)
    if (
        isinstance(line, TextLine)
        and own.before
        and context.replaced == 0
        and own.before == document.token_ids[:front] == context.token_ids_C[:front].tolist()
    ):
        # The text brought its beginning along; the teacher has read one already.
        context = replace(context, replaced=front)
    require_answers_alike(context, document.answers, whole.answers)
    notes = dict.fromkeys((*document.notes, *whole.notes, "under_context"))
    return replace(document, notes=tuple(notes)), context


def _sound(line: ParsedLine, document: Tokenised | LineProblem, own: OwnTokens, vocab_size: int) -> Tokenised:
    """The tokens of a line that has any, all of the vocabulary. Raises LineProblem."""
    if isinstance(document, LineProblem):
        raise document
    document = _with_own_tokens_once(line, document, own)
    _require_tokens(document.token_ids, vocab_size)
    return document


def _store(
    line: ParsedLine,
    document: Tokenised,
    context: ContextTokens | None,
    limits: DocumentLimits,
    store: TokenStoreWriter,
    counts: Prepared,
    place: tuple[int, int],
) -> list[tuple[bytes, int]]:
    """Add a line's documents to the store, and count what is unusual about them. Raises LineProblem.

    Returns:
        Identity and tokens of each document.
    """
    number, line_start = place
    trained = trained_tokens(line, document, limits.loss_on)
    token_ids, answers = document.token_ids, document.answers
    if context is None:
        pieces = fit(token_ids, limits.max_length, limits.overflow)
    else:
        pieces = fit_under(
            token_ids, context, max_length=limits.max_length, window=limits.window, policy=limits.overflow
        )
    start, empty, stored = 0, 0, list[tuple[bytes, int]]()
    for piece in pieces:
        stop = start + len(piece)
        extent = extent_of(len(piece), None if trained is None else cut_spans(trained, start, stop), context)
        if extent is not None:
            inside = None if answers is None else cut_spans(answers, start, stop)
            identity = store.append(
                piece, line=number, line_start=line_start, answers=inside, extent=extent, context=context
            )
            stored.append((identity, len(piece)))
        empty += extent is None
        start = stop
    if not stored:
        raise LineProblem(
            "answer_cut_off",
            f"none of the tokens to be recorded is among the first {len(pieces[0])}; raise max_length, or shorten the "
            "line",
        )
    if empty:
        counts.note("piece_without_answer", number)
    if len(pieces) > 1:
        counts.split_lines += 1
        counts.example("split", number)
    elif len(pieces[0]) < len(token_ids):
        counts.truncated_lines += 1
        counts.example("truncated", number)
        if answers and not cut_spans(answers, 0, len(pieces[0])):
            counts.note("answer_cut_off", number)
    for code in document.notes:
        counts.note(code, number)
    return stored


def _with_own_tokens_once(line: ParsedLine, document: Tokenised, own: OwnTokens) -> Tokenised:
    """Without the BOS and EOS that a text brings along, where the tokenizer adds them; ids are left as they are."""
    match line:
        case TextLine():
            token_ids, removed, notes = own.once(document.token_ids)
            if not notes:
                return document
            answers, length = document.answers, len(token_ids)
            if answers is not None:
                answers = cut_spans([(max(first - removed, 0), last - removed) for first, last in answers], 0, length)
            return replace(document, token_ids=token_ids, answers=answers, notes=(*document.notes, *notes))
        case TokenLine() if own.before and own.typed(document.token_ids)[0]:
            return replace(document, notes=(*document.notes, "ids_bos_twice"))
        case _:
            return document


def _require_tokens(token_ids: list[int], vocab_size: int) -> None:
    if len(token_ids) < 2:
        raise LineProblem(
            "too_short",
            f"the document has {len(token_ids)} token(s); at least 2 are needed to predict one from another",
        )
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        at = next(at for at, token in enumerate(token_ids) if not 0 <= token < vocab_size)
        raise LineProblem(
            "id_outside_vocabulary",
            f"token {at} has id {str(token_ids[at])[:24]}, outside the teacher's vocabulary of {vocab_size} "
            f"(0 to {vocab_size - 1}); were the ids made with another tokenizer?",
        )


def _bad(number: int, problem: LineProblem) -> Failure:
    message = problem.message
    if len(message) > LONGEST_MESSAGE:  # a template's own words may be as long as the line
        message = message[:LONGEST_MESSAGE] + "..."
    return Failure(stage="corpus", line=number, code=problem.code, message=message, custom_id=problem.custom_id)
