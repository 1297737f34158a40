"""Casks of made-up records for benchmarks: the sizes of real ones, no teacher needed.

Counts per position follow a cask of SmolLM2-135M over docstrings at tau = 1/20: 2.9 head entries and 7.9 draws on
average, with the spread of each. Token ids and probabilities are random; every head holds its next token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.storage.files import FileOperations, LocalFiles
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords, Records

DOCSTRING_LENGTHS = (76, 93, 110, 132, 170, 250, 505)
"""Quantiles of the lengths of standard-library docstrings beyond 300 characters, in tokens."""


def make_document(length: int, vocab_size: int, seed: int) -> DocumentRecords:
    """One document of `length` tokens with random records."""
    random = np.random.default_rng(seed)
    positions = length - 1
    ids: type[np.unsignedinteger[Any]] = np.uint16 if vocab_size <= 65_536 else np.uint32
    head_counts = np.minimum(1 + random.poisson(1.9, positions), 20).astype(np.uint8)
    tail_counts = np.clip(random.normal(7.9, 5.0, positions), 0, 20).astype(np.uint8)
    token_ids = random.integers(0, vocab_size, length).astype(ids)
    head_ids = random.integers(0, vocab_size, int(head_counts.sum())).astype(ids)
    head_ids[np.cumsum(head_counts, dtype=np.int64) - 1] = token_ids[1:]
    rows = np.repeat(np.arange(positions), tail_counts)
    tail_ids = random.integers(0, vocab_size, len(rows)).astype(ids)
    # Head probabilities share 60 % of the mass evenly, so that heads are valid whatever their size.
    shares = 0.6 / np.repeat(head_counts, head_counts)
    return DocumentRecords(
        token_ids_L=token_ids,
        records=Records(
            head_counts_P=head_counts,
            head_ids_H=head_ids,
            head_logprobs_H=np.log(shares).astype(np.float16),
            tail_counts_P=tail_counts,
            tail_ids_N=tail_ids[np.lexsort((tail_ids, rows))],
            position_columns={
                "log_tail_mass": np.full(positions, np.log(0.4), np.float16),
                "entropy": (4 * random.random(positions)).astype(np.float16),
            },
        ),
    )


def made_up_teacher(vocab_size: int) -> TeacherIdentity:
    """Nobody's identity."""
    return TeacherIdentity(
        model="made-up",
        weights_digest="0" * 64,
        dtype="float32",
        vocab_size=vocab_size,
        tokenizer_fingerprint="0" * 64,
        engine="transformers",
        engine_version="0",
    )


class UnsyncedFiles(LocalFiles):
    """For setting the stage only: thousands of shards without waiting for the disk."""

    def sync_file(self, file: BinaryIO) -> None:
        """Only empty the buffer."""
        file.flush()

    def sync_directory(self, path: Path) -> None:
        """Nothing."""


def make_cask(
    path: Path,
    lengths: Sequence[int],
    *,
    vocab_size: int,
    per_shard: int = 512,
    carrier: str = "arrow",
    files: FileOperations | None = None,
    teacher: TeacherIdentity | None = None,
) -> Cask:
    """A published cask with one document per length; of nobody, where no teacher is said."""
    teacher, spec = teacher or made_up_teacher(vocab_size), CaptureSpec()
    with CaskWriter.create(path, teacher=teacher, capture=spec, carrier=carrier, files=files) as writer:
        for start in range(0, len(lengths), per_shard):
            part = lengths[start : start + per_shard]
            writer.publish([make_document(length, vocab_size, start + i) for i, length in enumerate(part)])
    return Cask.open(path)
