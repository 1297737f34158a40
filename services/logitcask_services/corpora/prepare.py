"""From an uploaded corpus to a token store: read line by line, tokenise in batches, fit, report what is bad."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from logitcask_services.corpora.lines import LineProblem, ParsedLine, parse_line
from logitcask_services.corpora.overflow import Overflow, fit
from logitcask_services.corpora.rendering import tokenise
from logitcask_services.corpora.token_store import TokenStoreWriter
from logitcask_services.corpora.tokenizer import DocumentTokenizer

BOM = b"\xef\xbb\xbf"
BATCH_LINES = 1024
BATCH_BYTES = 4 << 20


class PreparationStoppedError(Exception):
    """The caller asked to stop; nothing was published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLimits:
    """What a document may be."""

    vocab_size: int
    max_length: int
    """Tokens."""
    overflow: Overflow
    max_line_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """One line that gave no document."""

    line: int
    code: str
    message: str
    custom_id: str | None


@dataclass(slots=True, kw_only=True)
class Prepared:
    """What preparation found."""

    lines: int = 0
    documents: int = 0
    tokens: int = 0
    bad_lines: int = 0
    skipped_lines: int = 0
    """Too long under the policy `skip`: reported, but as asked, so not bad."""
    truncated_lines: int = 0
    split_lines: int = 0


@dataclass(slots=True)
class _Batch:
    """Parsed lines waiting for the tokenizer, with number and first byte."""

    lines: list[tuple[int, int, ParsedLine]] = field(default_factory=list)
    bytes: int = 0

    def full(self) -> bool:
        return len(self.lines) >= BATCH_LINES or self.bytes >= BATCH_BYTES


def read_lines(corpus: Path, max_line_bytes: int) -> Iterator[tuple[int, int, bytes | None]]:
    """(number from 1, first byte, content without newline) per line; content None where it is over the limit."""
    with corpus.open("rb", buffering=1 << 20) as file:
        number, start = 0, 0
        while block := file.readline(max_line_bytes + 1):
            number += 1
            size, too_long = len(block), len(block) > max_line_bytes and not block.endswith(b"\n")
            while too_long and not block.endswith(b"\n") and (block := file.readline(1 << 20)):
                size += len(block)
            content = None if too_long else block.rstrip(b"\r\n")
            if number == 1 and content is not None:
                content = content.removeprefix(BOM)
            yield number, start, content
            start += size


def custom_id_at(corpus: Path, line_start: int, max_line_bytes: int) -> str | None:
    """The `custom_id` of the line that starts at a byte of the corpus, which gave a document before."""
    with corpus.open("rb") as file:
        file.seek(line_start)
        return parse_line(file.readline(max_line_bytes + 1).removeprefix(BOM)).custom_id


def prepare(
    corpus: Path,
    target: Path,
    tokenizer: DocumentTokenizer,
    limits: DocumentLimits,
    *,
    report: Callable[[list[BadLine]], None],
    stopped: Callable[[], bool],
) -> Prepared:
    """Write the token store of `corpus` at `target`; bad lines go to `report` in batches, in order of their lines.

    Memory is bounded by one batch of lines. Raises PreparationStoppedError when `stopped()` turns true, OSError where
    the disk is full.
    """
    found = Prepared()
    with TokenStoreWriter(target) as store:
        batch, bad = _Batch(), list[BadLine]()

        def flush() -> None:
            nonlocal batch
            if stopped():
                raise PreparationStoppedError
            _store_batch(batch, tokenizer, limits, store, found, bad)
            bad.sort(key=lambda entry: entry.line)
            if bad:
                report(list(bad))
            bad.clear()
            batch = _Batch()

        for number, start, content in read_lines(corpus, limits.max_line_bytes):
            found.lines += 1
            try:
                if content is None:
                    raise LineProblem(
                        "line_too_long",
                        f"the line is longer than {limits.max_line_bytes} bytes, the most this service reads",
                    )
                batch.lines.append((number, start, parse_line(content)))
                batch.bytes += len(content)
            except LineProblem as problem:
                found.bad_lines += 1
                bad.append(_bad(number, problem))
            if batch.full() or len(bad) >= BATCH_LINES:
                flush()
        flush()
        store.finish()
        found.documents, found.tokens = store.documents, store.tokens
    return found


def _store_batch(
    batch: _Batch,
    tokenizer: DocumentTokenizer,
    limits: DocumentLimits,
    store: TokenStoreWriter,
    found: Prepared,
    bad: list[BadLine],
) -> None:
    parsed = [line for _, _, line in batch.lines]
    for (number, start, line), tokenised in zip(batch.lines, tokenise(parsed, tokenizer), strict=True):
        try:
            if isinstance(tokenised, LineProblem):
                raise tokenised
            tokens = tokenised.token_ids
            pieces = fit(_checked(tokens, limits.vocab_size), limits.max_length, limits.overflow)
        except LineProblem as problem:
            problem.custom_id = line.custom_id
            if problem.code == "too_long":
                found.skipped_lines += 1
            else:
                found.bad_lines += 1
            bad.append(_bad(number, problem))
            continue
        found.split_lines += len(pieces) > 1
        found.truncated_lines += limits.overflow == "truncate" and len(tokens) > limits.max_length
        for piece in pieces:
            store.append(piece, line=number, line_start=start)


def _checked(token_ids: list[int], vocab_size: int) -> list[int]:
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
    return token_ids


def _bad(number: int, problem: LineProblem) -> BadLine:
    return BadLine(line=number, code=problem.code, message=problem.message, custom_id=problem.custom_id)
