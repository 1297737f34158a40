"""A corpus' lines as documents, with the loss mask: which tokens get a record, which are answers, which are control.

The code that prepares a corpus for capture prepares a few of its lines here, and the result is thrown away.
"""

import shutil
from itertools import groupby
from pathlib import Path
from secrets import token_hex
from typing import Final, get_args

import numpy as np
from pydantic import BaseModel

from logitcask_schemas.api.objects import Failure
from logitcask_schemas.api.requests import LossOn
from logitcask_schemas.record.extent import Extent
from logitcask_services.corpora.prepare import DocumentLimits, PreparationStoppedError, prepare
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.http.corpora import content_path
from logitcask_services.http.pages.viewer.rendering import QueryError
from logitcask_services.http.pages.viewer.texts import TokenTexts
from logitcask_services.http.previews import loaded_facts
from logitcask_services.http.problems import Problem
from logitcask_services.service import Service

PAGE_LINES: Final = 10
PAGE_BYTES: Final = 1 << 20
"""Of lines on one page; a longer line ends it."""
SHOWN_TOKENS: Final = 2048
"""Of one document."""
LOSS_ON: Final[tuple[LossOn, ...]] = get_args(LossOn)


class MaskedPiece(BaseModel):
    """A run of tokens of one kind."""

    text: str
    tokens: int
    trained: bool
    """Whether these tokens' positions get a record."""
    answer: bool
    control: bool


class MaskedDocument(BaseModel):
    """A document of the corpus."""

    line: int
    """From 1, in the corpus."""
    tokens: int
    recorded: int
    answer_tokens: int | None
    """None where the line does not tell what is an answer."""
    pieces: list[MaskedPiece]
    cut: bool
    """Whether more tokens follow than are shown."""


class CorpusRows(BaseModel):
    """Some lines of a corpus."""

    loss_on: LossOn
    documents: list[MaskedDocument]
    bad: list[Failure]
    next_start: int | None
    """Byte at which the next lines begin; None at the end."""
    next_line: int
    """Number of the line that begins there."""


def corpus_rows(service: Service, corpus_id: str, *, start: int, line: int, loss_on: str) -> CorpusRows:
    """Lines of a corpus from a byte on.

    Args:
        service: Whose corpus it is, and whose teacher has the tokenizer.
        corpus_id: The corpus.
        start: First byte, which must be that of a line.
        line: Number of that line, from 1.
        loss_on: Which tokens get a record, as extractions have it.

    Raises:
        QueryError: No line begins there, or no such loss mask.
        NotFoundError: No such corpus.
        Problem: 404 where its content is gone, 503 while the teacher loads for the first time.
    """
    mask = next((known for known in LOSS_ON if known == loss_on), None)
    if mask is None:
        raise QueryError(f"loss_on should be one of {', '.join(LOSS_ON)}, got {loss_on[:40]!r}")
    corpus = service.corpora.get(corpus_id)
    lines, stop = _lines_from(content_path(service, corpus), start, service.settings.max_line_bytes)
    facts = loaded_facts(service, None)
    limits = DocumentLimits(
        vocab_size=facts.vocab_size,
        max_length=facts.max_model_len,
        window=facts.max_model_len,
        overflow="truncate",
        loss_on=mask,
        max_line_bytes=service.settings.max_line_bytes,
    )
    # Beside the token stores: what a crash leaves there is swept at the next start.
    scratch = service.folders.extractions / f"preview-{token_hex(8)}"
    bad: list[Failure] = []
    try:
        scratch.mkdir()
        (scratch / "corpus.jsonl").write_bytes(b"".join(lines))
        prepare(
            scratch / "corpus.jsonl",
            scratch / "store",
            facts.tokenizer,
            limits,
            report=bad.extend,
            stopped=service.signals.stopping.is_set,
        )
        store = TokenStore(scratch / "store")
        documents = [_masked(store, number, facts.tokenizer, line) for number in range(store.num_documents)]
    except PreparationStoppedError as error:
        raise Problem(503, "stopping", "the service stops; try again when it is back") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return CorpusRows(
        loss_on=mask,
        documents=documents,
        bad=[failure.model_copy(update={"line": failure.line + line - 1}) for failure in bad],
        next_start=None if stop >= corpus.bytes else stop,
        next_line=line + len(lines),
    )


def _lines_from(path: Path, start: int, max_line_bytes: int) -> tuple[list[bytes], int]:
    """Whole lines from a byte on, and the byte behind them. Raises QueryError where no line begins there.

    Of a line that is too long, so much is kept that preparation sees it to be.
    """
    with path.open("rb") as file:
        file.seek(max(start - 1, 0))
        if start and file.read(1) != b"\n":
            raise QueryError(f"no line of the corpus begins at byte {start}")
        lines: list[bytes] = []
        size = 0
        while len(lines) < PAGE_LINES and size < PAGE_BYTES and (block := file.readline(max_line_bytes + 1)):
            is_cut = len(block) > max_line_bytes and not block.endswith(b"\n")
            lines.append(block + b"\n" if is_cut else block)
            size += len(block)
            while is_cut and (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        return lines, file.tell()


def _masked(store: TokenStore, document: int, tokenizer: DocumentTokenizer, first_line: int) -> MaskedDocument:
    token_ids: list[int] = store.tokens(document).tolist()
    ranges, extent = store.answers(document), Extent(recorded_R2=store.recorded(document))
    is_trained = np.zeros(len(token_ids), dtype=np.bool_)
    is_trained[extent.positions(len(token_ids)) + 1] = True
    is_answer = np.zeros(len(token_ids), dtype=np.bool_)
    for start, stop in [] if ranges is None else ranges.tolist():
        is_answer[start:stop] = True
    shown = token_ids[:SHOWN_TOKENS]
    texts = TokenTexts(tokenizer.decode).pieces(shown)
    kinds = [
        (bool(is_trained[at]), bool(is_answer[at]), shown[at] in tokenizer.control_ids) for at in range(len(shown))
    ]
    pieces = []
    for (trained, answer, control), group in groupby(range(len(shown)), kinds.__getitem__):
        run = list(group)
        text = "".join(texts[at] for at in run)
        pieces.append(MaskedPiece(text=text, tokens=len(run), trained=trained, answer=answer, control=control))
    return MaskedDocument(
        line=store.line(document)[0] + first_line - 1,
        tokens=len(token_ids),
        recorded=int(is_trained.sum()),
        answer_tokens=None if ranges is None else int(is_answer.sum()),
        pieces=pieces,
        cut=len(token_ids) > len(shown),
    )
