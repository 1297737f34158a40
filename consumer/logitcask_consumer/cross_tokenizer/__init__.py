"""Training a student whose tokenizer is not the teacher's, from the same cask.

Read in this order: `token_bytes` and `alignment` (two tokenisations of one text), `documents` and `corpus` (those of a
cask), `dataset` and `collate` (batches), `target` and `loss` (what a formula reads), `alm` and `uld`, `chunk_head` (how
it is computed), `run` (what a training run does differently).
"""

from logitcask_consumer.cross_tokenizer.evaluate import (
    AlignedDocuments,
    BitsPerByte,
    ChunkColumns,
    held_out_bits_per_byte,
)
from logitcask_consumer.cross_tokenizer.losses import CHUNK_LOSSES, Alm, ChunkObjective, NextToken, Uld
from logitcask_consumer.cross_tokenizer.method import CrossTokenizerMethod

__all__ = [
    "CHUNK_LOSSES",
    "AlignedDocuments",
    "Alm",
    "BitsPerByte",
    "ChunkColumns",
    "ChunkObjective",
    "CrossTokenizerMethod",
    "NextToken",
    "Uld",
    "held_out_bits_per_byte",
]
