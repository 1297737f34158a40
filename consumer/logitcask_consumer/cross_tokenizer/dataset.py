"""Training sequences of a student with its own tokenizer: windows of student tokens, and the teacher's records of them.

Shape legend: D aligned documents, W windows, B sequences, L tokens and C chunks of all windows.

Windows, packing and order are those of the package `data`, over student positions. A chunk belongs to the window in
which its last position carries loss, and is used where the window holds all of it: every chunk once, but for those
that are longer than the overlap and cross an edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.cross_tokenizer.corpus import AlignedCorpus
from logitcask_consumer.data.packed_dataset import PackedDataset
from logitcask_consumer.data.packing import Packing
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.batches import CollatedRecords, collate


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSequences:
    """B sequences: student tokens of their windows, chunks, and the teacher's records of the chunks."""

    window_offsets_B1: NDArray[np.int64]
    token_ids_L: NDArray[np.int64]
    """Each window has one token more than slots."""
    token_offsets_W1: NDArray[np.int64]
    context_W: NDArray[np.int64]
    """Slots at the start of each window whose cross-entropy counted in the window before."""
    chunk_counts_W: NDArray[np.int64]
    chunk_starts_C: NDArray[np.int64]
    chunk_stops_C: NDArray[np.int64]
    """Slots within the window: first, and one past the last."""
    teacher_starts_C: NDArray[np.int64]
    """First of the chunk's positions in `records`; they lie end to end."""
    records: CollatedRecords | None
    """None where no window has a chunk."""


class CrossTokenizerDataset(PackedDataset[ChunkSequences]):
    """Packed training sequences; a batch of them, as DataLoader asks for it, is read in one go."""

    def __init__(
        self,
        casks: Sequence[Cask],
        corpus: AlignedCorpus,
        *,
        seq_len: int,
        overlap: int = 0,
        packing: Packing = "best_fit",
        seed: int = 0,
    ) -> None:
        """Plan the sequences.

        Args:
            casks: those that the corpus was made from.
            corpus: the aligned documents.
            seq_len: slots of a sequence.
            overlap: context slots of the windows of longer documents.
            packing: `best_fit`, or `none` for one window per sequence.
            seed: of the order in which documents of equal length are packed.

        Raises:
            WindowError: seq_len and overlap do not fit.
        """
        super().__init__(
            casks,
            np.diff(corpus.student_offsets_D1) - 1,
            seq_len=seq_len,
            overlap=overlap,
            packing=packing,
            seed=seed,
            documents_D=corpus.documents_D,
        )
        self.corpus = corpus

    @property
    def num_documents(self) -> int:
        """Number of documents, D."""
        return len(self.corpus.documents_D)

    def read(self, sequences: Sequence[int]) -> ChunkSequences:
        """Several sequences at once; the sampler's `EMPTY` gives one without windows.

        Raises:
            CaskCorruptionError, CaskNotFoundError: a shard is missing or its bytes changed.
        """
        packs, corpus = self.packs.take(sequences), self.corpus
        tokens, starts, stops = [corpus.student_ids_S[:0]], [_NONE], [_NONE]
        teacher, chunked, spans = [_NONE], list[int](), list[tuple[int, int]]()
        counts, positions = list[int](), 0
        for window in packs.windows_W.tolist():
            document = int(self.windows.document_W[window])
            first, stop = int(self.windows.start_W[window]), int(self.windows.stop_W[window])
            base = int(corpus.student_offsets_D1[document])
            tokens.append(corpus.student_ids_S[base + first : base + stop + 1])
            bounds, teacher_bounds = self._bounds(document, first, int(self.windows.trained_W[window]), stop)
            counts.append(len(bounds) - 1 if len(bounds) else 0)
            if not counts[-1]:
                continue
            starts.append(bounds[:-1] - 1 - first)
            stops.append(bounds[1:] - 1 - first)
            teacher.append(teacher_bounds[:-1] - teacher_bounds[0] + positions)
            spans.append((int(teacher_bounds[0]) - 1, int(teacher_bounds[-1]) - 1))
            positions += spans[-1][1] - spans[-1][0]
            chunked.append(document)
        windows_W, rows = packs.windows_W, self.rows_of(corpus.documents_D[chunked].astype(np.int64))
        begins, ends = [a for a, _ in spans], [b for _, b in spans]
        return ChunkSequences(
            window_offsets_B1=packs.offsets_B1,
            token_ids_L=np.concatenate(tokens).astype(np.int64),
            token_offsets_W1=np.cumsum([0, *map(len, tokens[1:])], dtype=np.int64),
            context_W=self.windows.trained_W[windows_W] - self.windows.start_W[windows_W],
            chunk_counts_W=np.array(counts, dtype=np.int64),
            chunk_starts_C=np.concatenate(starts),
            chunk_stops_C=np.concatenate(stops),
            teacher_starts_C=np.concatenate(teacher),
            records=collate(rows, self.casks[0].layout, begins, ends, begins) if rows else None,
        )

    def _bounds(
        self, document: int, first: int, trained: int, stop: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bounds of the chunks of a window, in student and teacher tokens of the document."""
        span = slice(*self.corpus.bound_offsets_D1[document : document + 2].tolist())
        student = self.corpus.student_bounds_B[span].astype(np.int64)
        # Token j is predicted in slot j - 1: a chunk of tokens [a, b) fills the slots [a - 1, b - 1).
        begin = max(int(np.searchsorted(student, first + 1)), int(np.searchsorted(student, trained + 1, "right")) - 1)
        end = int(np.searchsorted(student, stop + 1, "right"))
        within = slice(begin, max(end, begin))
        return student[within], self.corpus.teacher_bounds_B[span].astype(np.int64)[within]


_NONE: NDArray[Any] = np.zeros(0, dtype=np.int64)
