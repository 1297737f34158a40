"""Bits per byte of student and teacher on the same bytes: the figure that two tokenizers can be compared by.

Shape legend: C aligned chunks of all documents, R rows of a batch, B sequences of a batch, S slots of a sequence.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.cross_tokenizer.collate import ChunkCollator
from logitcask_consumer.cross_tokenizer.dataset import CrossTokenizerDataset
from logitcask_consumer.cross_tokenizer.run import CrossTokenizerRun
from logitcask_consumer.data import open_casks
from logitcask_consumer.losses import LMHead, base_model
from logitcask_consumer.losses.fused_head import default_rows
from logitcask_consumer.students import load_model, load_tokenizer
from logitcask_schemas.cask import Cask

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkColumns:
    """What both models say of C aligned chunks."""

    documents_C: NDArray[np.int64]
    """Number of the document among those that could be aligned."""
    bytes_C: Column
    student_nats_C: Column
    """-log of the student's likelihood of the chunk's bytes, by its own tokens."""
    teacher_nats_C: Column
    """The same of the teacher, from the records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsPerByte:
    """Of the bytes of all aligned chunks, which both models predict."""

    student: float
    teacher: float
    """From the records: the likelihood of the teacher's own tokens."""
    bytes: int
    chunks: int


@torch.no_grad()
def evaluate_chunks(
    model: Any, dataset: CrossTokenizerDataset, collator: ChunkCollator, *, sequences: int
) -> ChunkColumns:
    """Measure a student on every aligned chunk of a dataset.

    Args:
        model: a causal LM with the student's tokenizer.
        dataset: one window per sequence (packing `none`), as a chunk's document is that of its sequence.
        collator: of teacher and student, which joins no chunks.
        sequences: of a forward pass.
    """
    was_training = model.training
    model.eval()
    head, body = LMHead.from_model(model), base_model(model)
    device, parts = head.weight_VD.device, list[tuple[NDArray[Any], ...]]()
    for first in range(0, len(dataset), sequences):
        chosen = range(first, min(first + sequences, len(dataset)))
        batch = collator(dataset.read(chosen))
        hidden_BSD = body(
            input_ids=batch["input_ids"].to(device), position_ids=batch["position_ids"].to(device), use_cache=False
        ).last_hidden_state
        hidden_RD = hidden_BSD.flatten(0, 1).index_select(0, batch["slots"].to(device))
        nats_R = _nats(hidden_RD, head, batch["next_ids"].to(device)).cpu().numpy()
        starts_C, stops_C = batch["chunk_starts"], batch["chunk_stops"]
        sequence_C = batch["slots"].numpy()[starts_C] // batch["input_ids"].shape[1]
        windows = dataset.packs.take(chosen).windows_W
        parts.append(
            (
                dataset.windows.document_W[windows][sequence_C],
                _sums(collator.byte_lengths(batch["next_ids"].numpy()), starts_C, stops_C),
                _sums(nats_R, starts_C, stops_C),
                -batch["teacher_logprobs"].numpy().astype(np.float64),
            )
        )
    model.train(was_training)
    documents_C, bytes_C, student_C, teacher_C = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ChunkColumns(documents_C=documents_C, bytes_C=bytes_C, student_nats_C=student_C, teacher_nats_C=teacher_C)


def aligned_columns(
    model: Any,
    tokenizer: Any,
    casks: Sequence[Cask],
    *,
    teacher: Path,
    seq_len: int,
    overlap: int,
    batch_tokens: int = 4096,
    say: Callable[[str], None] = lambda message: None,
) -> ChunkColumns:
    """Align the documents of some casks with a student's tokens and measure it on them.

    Args:
        model: a causal LM.
        tokenizer: the student's.
        casks: best held-out ones.
        teacher: the teacher's folder, of which only the tokenizer is read.
        seq_len: slots of a window; longer documents are cut.
        overlap: context slots of later windows.
        batch_tokens: slots of a forward pass.
        say: receives messages for people.

    Raises:
        NothingAlignedError: no document can be aligned.
        ModelError: model, tokenizer or teacher's folder lack what is asked of them.
        IdentityMismatchError: the teacher folder's tokenizer is not the one of the records.
    """
    with tempfile.TemporaryDirectory(prefix="logitcask-aligned-") as folder:
        config = TrainConfig(
            casks=tuple(cask.path for cask in casks),
            student="measured, not trained",
            teacher=teacher,
            output=Path(folder),
            loss="alm:debias=none,threshold=-1",
            seq_len=seq_len,
            overlap=overlap,
            packing="none",
        )
        run = CrossTokenizerRun.of(config, tokenizer)
        assert run is not None, "the loss has chunks"
        run.require(casks)
        run.check(model)
        dataset = run.dataset(casks, say)
        sequences = max(1, batch_tokens // int(dataset.windows.slots_W.max()))
        return evaluate_chunks(model, dataset, run.collator(dataset.manifest), sequences=sequences)


def held_out_bits_per_byte(
    student: Path | str, *, cask: Path | str, teacher: Path | str, seq_len: int = 512, overlap: int = 64
) -> BitsPerByte:
    """Compare a student's folder with the teacher on the documents of a cask.

    Args:
        student: a trained student with its tokenizer.
        cask: of the documents.
        teacher: the teacher's folder, of which only the tokenizer is read.
        seq_len: slots of a window; longer documents are cut.
        overlap: context slots of later windows.

    Raises:
        CaskError: the cask cannot be opened, or no document can be aligned.
        ModelError: a folder lacks what is asked of it.
    """
    found = aligned_columns(
        load_model(Path(student)),
        load_tokenizer(Path(student)),
        open_casks([cask], tokenizer_fingerprint=None),
        teacher=Path(teacher),
        seq_len=seq_len,
        overlap=overlap,
    )
    bits = math.log(2.0) * found.bytes_C.sum()
    return BitsPerByte(
        student=float(found.student_nats_C.sum() / bits),
        teacher=float(found.teacher_nats_C.sum() / bits),
        bytes=int(found.bytes_C.sum()),
        chunks=len(found.bytes_C),
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
