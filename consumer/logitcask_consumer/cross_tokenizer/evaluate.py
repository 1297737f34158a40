"""Bits per byte of student and teacher on the same bytes: the figure that two tokenizers can be compared by."""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.cross_tokenizer.chunk_head import chunk_distillation_loss
from logitcask_consumer.cross_tokenizer.collate import ChunkCollator, target_of_chunks
from logitcask_consumer.cross_tokenizer.dataset import CrossTokenizerDataset
from logitcask_consumer.cross_tokenizer.next_token import NextToken
from logitcask_consumer.cross_tokenizer.run import CrossTokenizerRun
from logitcask_consumer.data import open_casks
from logitcask_consumer.losses import LMHead, base_model
from logitcask_consumer.students import load_model, load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsPerByte:
    """Of the bytes of all aligned chunks, which both models predict."""

    student: float
    teacher: float
    """From the records: the likelihood of the teacher's own tokens."""
    bytes: int
    chunks: int


@torch.no_grad()
def bits_per_byte(
    model: Any, dataset: CrossTokenizerDataset, collator: ChunkCollator, *, sequences: int = 8
) -> BitsPerByte:
    """Compare a student with the teacher on the documents of a dataset, best one that was held out.

    Args:
        model: a causal LM with the student's tokenizer.
        dataset: of the documents.
        collator: of teacher and student.
        sequences: of a forward pass.
    """
    was_training = model.training
    model.eval()
    head, body = LMHead.from_model(model), base_model(model)
    device = head.weight_VD.device
    none_V = torch.zeros(head.vocab_size, dtype=torch.bool, device=device)
    nats, sums_5 = 0.0, torch.zeros(5, dtype=torch.float64)
    for first in range(0, len(dataset), sequences):
        batch = collator(dataset.read(range(first, min(first + sequences, len(dataset)))))
        target = target_of_chunks(batch)
        target = replace(target, counted_R=target.chunk_of_R < target.num_chunks)
        hidden_BSD = body(
            input_ids=batch["input_ids"].to(device), position_ids=batch["position_ids"].to(device), use_cache=False
        ).last_hidden_state
        hidden_RD = hidden_BSD.flatten(0, 1).index_select(0, batch["slots"].to(device))
        target = target.to(device)
        nats += float(chunk_distillation_loss(hidden_RD, head, target, [(1.0, NextToken())], closing_V=none_V).ce)
        sums_5 += batch["counts"]
    model.train(was_training)
    _, _, chunks, text_bytes, teacher_nats = sums_5.tolist()
    bits = math.log(2.0) * max(text_bytes, 1.0)
    return BitsPerByte(student=nats / bits, teacher=teacher_nats / bits, bytes=int(text_bytes), chunks=int(chunks))


def held_out_bits_per_byte(
    student: Path | str, *, cask: Path | str, teacher: Path | str, seq_len: int = 512, overlap: int = 64
) -> BitsPerByte:
    """The same from folders.

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
    with tempfile.TemporaryDirectory(prefix="logitcask-aligned-") as folder:
        config = TrainConfig(
            casks=(cask,),
            student=str(student),
            teacher=Path(teacher),
            output=Path(folder),
            loss="alm:debias=none,threshold=-1",
            seq_len=seq_len,
            overlap=overlap,
        )
        run = CrossTokenizerRun.of(config, load_tokenizer(Path(student)))
        assert run is not None, "the loss has chunks"
        casks = open_casks(config.casks, tokenizer_fingerprint=None)
        run.require(casks)
        model = load_model(Path(student))
        run.check(model)
        dataset = run.dataset(casks, lambda message: None)
        return bits_per_byte(model, dataset, run.collator(dataset.manifest))
