"""Bits per byte of student and teacher on the same bytes: the figure that two tokenizers can be compared by.

Shape legend: C aligned chunks of all documents, R rows of a batch, B sequences of a batch, S slots of a sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.cross_tokenizer.collate import ChunkCollator
from logitcask_consumer.cross_tokenizer.corpus import NothingAlignedError
from logitcask_consumer.cross_tokenizer.dataset import CrossTokenizerDataset
from logitcask_consumer.cross_tokenizer.losses import ChunkObjective
from logitcask_consumer.cross_tokenizer.method import CrossTokenizerMethod
from logitcask_consumer.head import LMHead
from logitcask_consumer.head.fused_head import default_rows
from logitcask_consumer.student.forward import hidden_states
from logitcask_schemas.cask import Cask

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkColumns:
    """What both models say of C aligned chunks."""

    documents_C: NDArray[np.int64]
    """Number of the document in the casks."""
    bytes_C: Column
    student_nats_C: Column
    """-log of the student's likelihood of the chunk's bytes, by its own tokens."""
    teacher_nats_C: Column
    """The same of the teacher, from the records."""

    def of_documents(self, documents: NDArray[np.int64]) -> "ChunkColumns":
        """The chunks of some documents."""
        kept_C = np.isin(self.documents_C, documents)
        return ChunkColumns(
            documents_C=self.documents_C[kept_C],
            bytes_C=self.bytes_C[kept_C],
            student_nats_C=self.student_nats_C[kept_C],
            teacher_nats_C=self.teacher_nats_C[kept_C],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedDocuments:
    """Documents of some casks in a student's tokens, one window per sequence, ready to measure the student on."""

    dataset: CrossTokenizerDataset
    collator: ChunkCollator
    """Joins no chunks."""
    first_space: bool
    """Whether the first predicted token of a document holds a space that the student's tokenizer has put there."""

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        casks: Sequence[Cask],
        *,
        teacher: Path,
        folder: Path,
        seq_len: int,
        overlap: int,
        say: Callable[[str], None] = lambda message: None,
    ) -> "AlignedDocuments":
        """Align the documents, or open what an earlier call made of the same ones in the folder.

        Args:
            model: a causal LM, whose vocabulary and head are checked.
            tokenizer: the student's.
            casks: best held-out ones.
            teacher: the teacher's folder, of which only the tokenizer is read.
            folder: where the aligned documents are kept; it must outlive the result.
            seq_len: slots of a window; longer documents are cut.
            overlap: context slots of later windows.
            say: receives messages for people.

        Raises:
            NothingAlignedError: no document can be aligned.
            ModelError: model, tokenizer or teacher's folder lack what is asked of them.
            IdentityMismatchError: the teacher folder's tokenizer is not the one of the records.
        """
        method = CrossTokenizerMethod.of(
            ChunkObjective.parse("alm:debias=none,threshold=-1"), tokenizer, teacher=teacher, folder=folder
        ).bound(casks)
        dataset = method.dataset(casks, seq_len=seq_len, overlap=overlap, packing="none", seed=0)
        method.check(model, dataset)
        for note in method.notes(dataset, model):
            say(note)
        return cls(
            dataset=dataset,
            collator=method.collator(dataset),
            first_space=method.aligner.student_bytes.strips_first_space and method.aligner.begins_with_special,
        )

    @torch.no_grad()
    def measure(
        self, model: Any, *, batch_tokens: int = 4096, progress: Callable[[int], None] = lambda sequences: None
    ) -> ChunkColumns:
        """What the student and, by the records, the teacher say of every chunk that has bytes.

        Args:
            model: the student, on the device it shall run on.
            batch_tokens: slots of a forward pass.
            progress: is told the number of sequences of each batch done.

        Raises:
            NothingAlignedError: the windows are too short for every chunk.
        """
        was_training = model.training
        model.eval()
        sequences = max(1, batch_tokens // int(self.dataset.windows.slots_W.max()))
        batches = (range(n, min(n + sequences, len(self.dataset))) for n in range(0, len(self.dataset), sequences))
        parts = []
        for chosen in batches:
            parts.append(self._measured(model, chosen))
            progress(len(chosen))
        model.train(was_training)
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        # The end of a text is a chunk without bytes, which some tokenizers have.
        documents_C, bytes_C, student_C, teacher_C = (column[columns[1] > 0] for column in columns)
        if not len(bytes_C):
            raise NothingAlignedError(
                f"windows of {self.dataset.seq_len} tokens hold no whole chunk; take longer ones (seq_len)"
            )
        return ChunkColumns(
            documents_C=documents_C, bytes_C=bytes_C, student_nats_C=student_C, teacher_nats_C=teacher_C
        )

    def _measured(self, model: Any, chosen: range) -> tuple[NDArray[Any], ...]:
        """Documents, bytes, student's and teacher's nats of the chunks of some sequences."""
        batch, windows = self.collator(self.dataset.read(chosen)), self.dataset.windows
        head, device = LMHead.from_model(model), next(model.parameters()).device
        hidden_BSD = hidden_states(model, batch["input_ids"].to(device), batch["position_ids"].to(device))
        hidden_RD = hidden_BSD.flatten(0, 1).index_select(0, batch["slots"].to(device))
        nats_R = _nats(hidden_RD, head, batch["next_ids"].to(device)).cpu().numpy()
        slots_R = batch["slots"].numpy()
        numbers = self.dataset.packs.take(chosen).windows_W
        assert len(numbers) == len(chosen), "one window per sequence"
        window_R = numbers[slots_R // batch["input_ids"].shape[1]]
        bytes_R = self.collator.byte_lengths(batch["next_ids"].numpy())
        if self.first_space:
            first_R = (batch["position_ids"].flatten().numpy()[slots_R] == 0) & (windows.start_W[window_R] == 0)
            bytes_R = bytes_R - first_R
        starts_C, stops_C = batch["chunk_starts"], batch["chunk_stops"]
        return (
            self.dataset.corpus.documents_D[windows.document_W[window_R[starts_C]]].astype(np.int64),
            _sums(bytes_R, starts_C, stops_C),
            _sums(nats_R, starts_C, stops_C),
            -batch["teacher_logprobs"].numpy().astype(np.float64),
        )


def _nats(hidden_RD: Tensor, head: LMHead, next_ids_R: Tensor) -> Tensor:
    """-log p of each row's next token, float64, [R]."""
    rows, parts = default_rows(head), [hidden_RD.new_zeros(0, dtype=torch.float64)]
    for start in range(0, len(hidden_RD), rows):
        logits_RV = head.logits(hidden_RD[start : start + rows]).float()
        ids_R = next_ids_R[start : start + rows, None]
        parts.append((torch.logsumexp(logits_RV, -1) - logits_RV.gather(1, ids_R)[:, 0]).double())
    return torch.cat(parts)


def _sums(values_R: NDArray[Any], starts_C: NDArray[np.int64], stops_C: NDArray[np.int64]) -> Column:
    """Sum of the rows of each chunk."""
    before_R1 = np.concatenate([[0.0], np.cumsum(values_R, dtype=np.float64)])
    sums: Column = before_R1[stops_C] - before_R1[starts_C]
    return sums
