"""Training a student whose tokenizer is not the teacher's, from the same cask.

Read in this order: `align` (two tokenisations of one text), `corpus` (the documents of a cask), `dataset` and `collate`
(batches), `target` and `chunk_loss` (what a formula reads), `losses`, `chunk_head` (how they are computed), `method`
(what the trainer sees).
"""

from logitcask_consumer.cross_tokenizer.evaluate import AlignedDocuments, ChunkColumns
from logitcask_consumer.cross_tokenizer.losses import CHUNK_LOSSES, Alm, ChunkObjective, NextToken, Uld
from logitcask_consumer.cross_tokenizer.method import CrossTokenizerMethod

__all__ = [
    "CHUNK_LOSSES",
    "AlignedDocuments",
    "Alm",
    "ChunkColumns",
    "ChunkObjective",
    "CrossTokenizerMethod",
    "NextToken",
    "Uld",
]
