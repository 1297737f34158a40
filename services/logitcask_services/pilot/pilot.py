"""The pilot pass: documents to records, through an engine or through anything that gives logits.

Shape legend: L tokens of a document, P = L - 1 positions, V vocabulary, H head entries, N draws.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.record.capture_spec import MAX_ENTRIES, CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.corpora.corpus_lines import CorpusLines
from logitcask_services.corpora.lines import LineProblem, parse_line, under_context
from logitcask_services.corpora.tokenise import tokenise
from logitcask_services.corpora.tokenizer import DocumentTokenizer
from logitcask_services.engines.engine import CaptureTask, Engine

if TYPE_CHECKING:
    from logitcask_services.pilot.logits import LogitsFunction


class PilotError(LogitcaskError, ValueError):
    """A pilot cannot answer: no usable sample, a document that the teacher failed on, a budget out of reach."""


PILOT_TAU = 1 / 800
_DRAWS = 128
_SQUARES = 0.5
"""Temperature at which the sum of t^(1/T) is that of t²."""


def pilot_spec(spec: CaptureSpec) -> CaptureSpec:
    """What to capture for a pilot of `spec`: its columns and pinned ids, at the pilot's threshold, in float32."""
    temperatures = spec.temperatures if _SQUARES in spec.temperatures else (*spec.temperatures, _SQUARES)
    changes = {
        "mode": "threshold",
        "tau": PILOT_TAU,
        "head_max": MAX_ENTRIES - 1 - len(spec.pinned_ids),
        "tail_max": _DRAWS,
        "sampler": "systematic",
        "logprob_codec": "f32",
        "tail_logprobs": True,
        "temperatures": temperatures,
    }
    return CaptureSpec.model_validate(spec.model_dump() | changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotRecords:
    """The pilot's records as flat columns in float64."""

    documents: Sequence[DocumentRecords]
    head_rows_E: NDArray[np.int64]
    """Position of each head entry, over all documents."""
    head_ids_E: NDArray[np.int64]
    head_logprobs_E: NDArray[np.float64]
    head_ranks_E: NDArray[np.int64]
    """Place within the position: 0 for the most probable token."""
    required_E: NDArray[np.bool_]
    """Whether it is the next token or a pinned id, which every head holds."""
    tail_rows_N: NDArray[np.int64]
    tail_ids_N: NDArray[np.int64]
    tail_logprobs_N: NDArray[np.float64]
    draw_mass_N: NDArray[np.float64]
    """What each draw stands for."""
    tail_mass_P: NDArray[np.float64]
    tail_squares_P: NDArray[np.float64]
    """Sum of t² over the tail."""
    squares_P: NDArray[np.float64]
    """Sum of t² over the vocabulary."""

    @property
    def positions(self) -> int:
        """P."""
        return len(self.tail_mass_P)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return self.positions + len(self.documents)

    @classmethod
    def of(cls, documents: Sequence[DocumentRecords], spec: CaptureSpec) -> "PilotRecords":
        """Of documents captured with `pilot_spec(spec)`."""
        temperature = pilot_spec(spec).temperatures.index(_SQUARES)
        parts = [document.records for document in documents]
        head_counts_P = np.concatenate([part.head_counts_P for part in parts]).astype(np.int64)
        tail_counts_P = np.concatenate([part.tail_counts_P for part in parts]).astype(np.int64)
        rows_P = np.arange(len(head_counts_P))
        head_rows_E, tail_rows_N = np.repeat(rows_P, head_counts_P), np.repeat(rows_P, tail_counts_P)
        head_ids_E = np.concatenate([part.head_ids_H for part in parts]).astype(np.int64)
        head_logprobs_E = np.concatenate([part.head_logprobs_H for part in parts]).astype(np.float64)
        tail_mass_P = np.exp(np.concatenate([part.log_tail_mass_P for part in parts]).astype(np.float64))
        squares_P = np.exp(np.concatenate([_log_z(document)[:, temperature] for document in documents]))
        next_ids_P = np.concatenate([document.token_ids_L[1:] for document in documents]).astype(np.int64)
        head_squares_P = np.bincount(head_rows_E, np.exp(2 * head_logprobs_E), len(rows_P))
        return cls(
            documents=documents,
            head_rows_E=head_rows_E,
            head_ids_E=head_ids_E,
            head_logprobs_E=head_logprobs_E,
            head_ranks_E=np.arange(len(head_rows_E)) - (np.cumsum(head_counts_P) - head_counts_P)[head_rows_E],
            required_E=(head_ids_E == next_ids_P[head_rows_E]) | np.isin(head_ids_E, np.array(spec.pinned_ids)),
            tail_rows_N=tail_rows_N,
            tail_ids_N=np.concatenate([part.tail_ids_N for part in parts]).astype(np.int64),
            tail_logprobs_N=np.concatenate([_tail_logprobs(document) for document in documents]),
            draw_mass_N=(tail_mass_P / np.maximum(tail_counts_P, 1))[tail_rows_N],
            tail_mass_P=tail_mass_P,
            # A difference, but of numbers that the teacher's float32 logits know to seven digits.
            tail_squares_P=np.maximum(squares_P - head_squares_P, 0.0),
            squares_P=squares_P,
        )


def _log_z(document: DocumentRecords) -> NDArray[np.float64]:
    assert document.records.log_z_PT is not None  # the pilot's spec asks for it
    return document.records.log_z_PT.astype(np.float64)


def _tail_logprobs(document: DocumentRecords) -> NDArray[np.float64]:
    assert document.records.tail_logprobs_N is not None  # the pilot's spec asks for it
    return document.records.tail_logprobs_N.astype(np.float64)


_MAX_LINE_BYTES = 16 << 20


def sample_documents(path: Path, tokenizer: DocumentTokenizer, max_length: int) -> Iterator[list[int]]:
    """Token ids of each line of a corpus file, truncated to `max_length`; single tokens are left out.

    Args:
        path: JSON lines, in the forms of `logitcask_services.corpora.lines`.
        tokenizer: the teacher's.
        max_length: tokens.

    Raises:
        PilotError: a line is bad; names file and line.
    """
    for number, _, content in CorpusLines(path, _MAX_LINE_BYTES):
        try:
            if content is None:
                raise LineProblem("line_too_long", f"the line is longer than {_MAX_LINE_BYTES} bytes")
            ids = _ids(content, tokenizer)
        except LineProblem as problem:
            raise PilotError(f"{path}, line {number}: {problem}") from problem
        if len(ids) > 1:
            yield ids[:max_length]


def _ids(content: bytes, tokenizer: DocumentTokenizer) -> list[int]:
    line = parse_line(content)
    if under_context(line) is not None:
        raise LineProblem(
            "has_context",
            "the line has a context, and a sample is read without any: take the field out. Under contexts a teacher "
            "usually is surer, so its records will be smaller than those of the sample",
        )
    (tokenised,) = tokenise([line], tokenizer)
    if isinstance(tokenised, LineProblem):
        raise tokenised
    return tokenised.token_ids


def piloted(
    teacher: "Engine | LogitsFunction", sample: Iterable[ArrayLike], spec: CaptureSpec, positions: int
) -> tuple[list[DocumentRecords], int]:
    """Records of the sample's first documents, until they have `positions` positions, and the width of the logits.

    Raises:
        PilotError: there is no document, or the teacher failed on one.
    """
    documents = _first(sample, positions)
    if callable(teacher):
        from logitcask_services.pilot.logits import records_from_logits  # by torch, which a service goes without

        records, vocab_size = records_from_logits(teacher, documents, spec)
    else:
        vocab_size = teacher.identity.vocab_size
        records = []
        tasks = (CaptureTask(key=number, token_ids_L=ids) for number, ids in enumerate(documents))
        for result in teacher.capture(tasks, spec):
            if result.document is None:
                raise PilotError(f"document {result.key} of the sample, counted from 0: {result.error}")
            records.append(result.document)
    if not records:
        raise PilotError("the sample holds no document; expected some, with a few thousand tokens together")
    return records, vocab_size


def _first(sample: Iterable[ArrayLike], positions: int) -> Iterator[NDArray[np.uint32]]:
    positions_read = 0
    for number, tokens in enumerate(sample):
        ids_L = np.asarray(tokens, dtype=np.uint32)
        if ids_L.ndim != 1 or len(ids_L) < 2:
            raise PilotError(
                f"document {number} of the sample, counted from 0, should be one row of at least 2 token ids, "
                f"got shape {ids_L.shape}"
            )
        yield ids_L
        positions_read += len(ids_L) - 1
        if positions_read >= positions:
            return
