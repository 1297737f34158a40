"""All documents of some casks in the student's tokens, with their chunks: made once, then mapped from disk.

Shape legend: D aligned documents; S student tokens and B chunk bounds, of all documents end to end.

A pass over the casks' token ids tokenises every document again. What comes of it lies in files beside the run, so that
memory does not grow with the corpus, DataLoader workers share it, and a continued run does not make it twice.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.cross_tokenizer.align import AlignedDocument, DocumentAligner
from logitcask_consumer.run_document import replace_file
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import CaskError

_SUMMARY: Final = "aligned.json"
_COLUMNS: Final[dict[str, str]] = {
    "student_ids": "<u4",
    "teacher_bounds": "<u4",
    "student_bounds": "<u4",
    "documents": "<i8",
    "student_counts": "<i8",
    "bound_counts": "<i8",
}
_AT_ONCE: Final = 256


class NothingAlignedError(CaskError):
    """No document of the casks can be trained on with this student."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentSummary:
    """What became of the documents."""

    key: str
    """What the files were made from: casks and tokenizers."""
    documents: int
    """That were aligned."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many were not, by reason."""
    teacher_tokens: int = 0
    student_tokens: int = 0
    chunks: int = 0


class AlignedCorpus:
    """D documents; pickles by path, and maps its files in each process."""

    def __init__(self, folder: Path, summary: AlignmentSummary) -> None:
        self.folder = folder
        self.summary = summary
        column = self._column
        self.documents_D = column("documents")
        """Number, over all casks, of each aligned document, ascending."""
        self.student_ids_S, self.student_offsets_D1 = column("student_ids"), _offsets(column("student_counts"))
        self.teacher_bounds_B, self.student_bounds_B = column("teacher_bounds"), column("student_bounds")
        self.bound_offsets_D1 = _offsets(column("bound_counts"))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.summary)

    @classmethod
    def open_or_make(cls, folder: Path, casks: Sequence[Cask], aligner: DocumentAligner, *, key: str) -> Self:
        """The corpus in a folder, made first where it is missing or was made from something else.

        Args:
            folder: of the files; written atomically enough that a cut-short attempt is made again.
            casks: in the order in which documents are numbered.
            aligner: of teacher and student.
            key: names casks and tokenizers.

        Raises:
            NothingAlignedError: every document was left out.
            CaskCorruptionError, CaskNotFoundError: a shard is missing or its bytes changed.
        """
        path = folder / _SUMMARY
        if path.is_file() and (stored := json.loads(path.read_text()))["key"] == key:
            return cls(folder, AlignmentSummary(**stored))
        return cls(folder, _make(folder, casks, aligner, key))

    def _column(self, name: str) -> NDArray[Any]:
        mapped: NDArray[Any] = np.memmap(self.folder / name, dtype=np.dtype(_COLUMNS[name]), mode="r")
        return mapped


def _make(folder: Path, casks: Sequence[Cask], aligner: DocumentAligner, key: str) -> AlignmentSummary:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SUMMARY).unlink(missing_ok=True)  # written last: files without it do not count
    totals, left_out = Counter[str](), Counter[str]()
    files = {name: (folder / name).open("wb") for name in _COLUMNS}
    try:
        for first, documents in _batches(casks):
            aligned = aligner.align(documents)
            left_out.update(reason for reason in aligned if isinstance(reason, str))
            kept = [(n, document) for n, document in enumerate(aligned) if isinstance(document, AlignedDocument)]
            if not kept:
                continue
            columns = {
                "student_ids": np.concatenate([document.student_ids_S for _, document in kept]),
                "teacher_bounds": np.concatenate([document.teacher_bounds_C1 for _, document in kept]),
                "student_bounds": np.concatenate([document.student_bounds_C1 for _, document in kept]),
                "documents": np.array([first + n for n, _ in kept]),
                "student_counts": np.array([len(document.student_ids_S) for _, document in kept]),
                "bound_counts": np.array([len(document.student_bounds_C1) for _, document in kept]),
            }
            for name, values in columns.items():
                files[name].write(values.astype(np.dtype(_COLUMNS[name])).tobytes())
            totals["documents"] += len(kept)
            totals["teacher_tokens"] += sum(len(documents[n]) for n, _ in kept)
            totals["student_tokens"] += len(columns["student_ids"])
            totals["chunks"] += len(columns["student_bounds"]) - len(kept)
    finally:
        for file in files.values():
            file.close()
    if not totals["documents"]:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in left_out.most_common())
        raise NothingAlignedError(
            f"no document of {', '.join(str(cask.path) for cask in casks)} can be aligned with the student's "
            f"tokenizer ({reasons or 'there is none'})"
        )
    summary = AlignmentSummary(key=key, left_out=dict(left_out), **totals)
    replace_file(folder / _SUMMARY, json.dumps(asdict(summary), indent=2) + "\n")
    return summary


def _batches(casks: Sequence[Cask]) -> Iterator[tuple[int, list[NDArray[Any]]]]:
    """Token ids of some documents at a time, each with the number of the first."""
    first = 0
    for cask in casks:
        for number in range(len(cask.entries)):
            shard = cask.shard(number)
            for start in range(0, shard.num_documents, _AT_ONCE):
                rows = range(start, min(start + _AT_ONCE, shard.num_documents))
                yield first + start, [shard.read(row).token_ids_L for row in rows]
            first += shard.num_documents


def _offsets(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
