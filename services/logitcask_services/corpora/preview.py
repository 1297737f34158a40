"""What preparation would make of a corpus, for people: some documents with their answers, and every count.

The same code prepares a corpus for capture; here its token store is read and thrown away.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Literal

from logitcask_schemas.api.objects import BytesPerToken, Failure, Preview, PreviewDocument, PreviewPiece
from logitcask_schemas.record.extent import Extent
from logitcask_services.corpora.prepare import DocumentLimits, Prepared, prepare
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.corpora.tokenizer import DocumentTokenizer

SHOWN_TOKENS = 4096
"""Of one document."""
SHOWN_BAD = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Previewed:
    """What a corpus, or its beginning, gives."""

    prepared: Prepared
    shown: list[PreviewDocument]
    bad: list[Failure]
    """The first ones."""
    bad_by_code: dict[str, int]

    def object(self, spec_bytes: BytesPerToken, *, teacher: str, limits: DocumentLimits) -> Preview:
        """As callers see it.

        Args:
            spec_bytes: What the capture spec takes.
            teacher: Its name.
            limits: What the documents were prepared with.
        """
        counts = {field.name: getattr(self.prepared, field.name) for field in fields(self.prepared)}
        return Preview(
            first_lines=counts.pop("examples"),
            **counts,
            bad_by_code=self.bad_by_code,
            bad=self.bad,
            shown=self.shown,
            bytes_per_token=spec_bytes,
            teacher=teacher,
            max_length=limits.max_length,
            overflow=limits.overflow,
        )


def preview(
    corpus: Path,
    scratch: Path,
    tokenizer: DocumentTokenizer,
    limits: DocumentLimits,
    *,
    documents: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Previewed:
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
    bad: list[Failure] = []
    by_code: dict[str, int] = {}

    def report(entries: list[Failure]) -> None:
        bad.extend(entries[: SHOWN_BAD - len(bad)])
        for entry in entries:
            by_code[entry.code] = by_code.get(entry.code, 0) + 1

    prepared = prepare(corpus, scratch, tokenizer, limits, report=report, stopped=stopped)
    store = TokenStore(scratch)
    shown = [_shown(store, number, tokenizer) for number in _chosen(store, prepared, documents)]
    return Previewed(prepared=prepared, shown=shown, bad=bad, bad_by_code=by_code)


def _chosen(store: TokenStore, prepared: Prepared, limit: int) -> list[int]:
    """Documents to show, in order: the first, the first of each unusual kind, their seconds and so on, the rest."""
    kinds = [prepared.examples.get(code, []) for code in (*prepared.notes, "truncated", "split")]
    unusual = [line for lines in zip_longest(*kinds) for line in lines if line is not None]
    numbers = (0, *(store.first_document_of(line) for line in unusual), *range(limit))
    existing = [number for number in dict.fromkeys(numbers) if number is not None and number < store.num_documents]
    return sorted(existing[:limit])


def _shown(store: TokenStore, document: int, tokenizer: DocumentTokenizer) -> PreviewDocument:
    token_ids: list[int] = store.tokens(document).tolist()
    ranges, context = store.answers(document), store.context(document)
    answers: list[list[int]] = [] if ranges is None else ranges.tolist()
    answered = {token for start, stop in answers for token in range(start, min(stop, SHOWN_TOKENS))}
    control = tokenizer.control_ids

    def kind(at: int) -> Literal["text", "answer", "control", "answer_control"]:
        if token_ids[at] in control:
            return "answer_control" if at in answered else "control"
        return "answer" if at in answered else "text"

    pieces = []
    for name, group in groupby(range(min(len(token_ids), SHOWN_TOKENS)), kind):
        run = list(group)
        text = _text(tokenizer, token_ids, run[0], run[-1] + 1)
        pieces.append(PreviewPiece(kind=name, text=text, tokens=len(run)))
    return PreviewDocument(
        line=store.line(document)[0],
        tokens=len(token_ids),
        answer_tokens=None if ranges is None else sum(stop - start for start, stop in answers),
        recorded_positions=Extent(recorded_R2=store.recorded(document)).num_positions(len(token_ids)),
        context_tokens=0 if context is None else len(context.token_ids_C),
        pieces=pieces,
        cut=len(token_ids) > SHOWN_TOKENS,
    )


def _text(tokenizer: DocumentTokenizer, token_ids: list[int], start: int, stop: int) -> str:
    """The text of a run of tokens; with the token before it, as decoders drop a space at the beginning."""
    if start == 0:
        return tokenizer.decode(token_ids[:stop])
    before, both = tokenizer.decode(token_ids[start - 1 : start]), tokenizer.decode(token_ids[start - 1 : stop])
    return both.removeprefix(before) if both.startswith(before) else tokenizer.decode(token_ids[start:stop])
