"""A model over the documents of a cask: per-position columns, with the document each position belongs to.

Shape legend: P positions of the cask, T positions of a batch, R rows of a chunk.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcask_consumer.data import Batch, CaskDataset, Collator, target_of
from logitcask_consumer.losses import LMHead
from logitcask_consumer.losses.fused_head import default_rows
from logitcask_consumer.packed_forward import hidden_states
from logitcask_consumer.report.position_metrics import measure, teacher_columns
from logitcask_consumer.report.reading import document_order
from logitcask_consumer.vocabulary import ExtraIds, StudentVocabulary

Column = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Measured values of P positions, by document, then by position: comparable whatever windows they were read in."""

    documents_P: NDArray[np.int32]
    """Number of the document."""
    values: dict[str, Column]
    """Metric name -> [P]."""


def evaluate_model(
    model: Any,
    dataset: CaskDataset,
    *,
    batch_sequences: int,
    extra_ids: ExtraIds = "keep",
    progress: Callable[[int], None] = lambda positions: None,
) -> Columns:
    """Measure a model at every position of the dataset.

    Args:
        model: a causal LM, on the device it shall run on.
        dataset: held-out documents.
        batch_sequences: sequences per forward pass.
        extra_ids: what becomes of its ids beyond the teacher's, as in its training run.
        progress: is told the number of positions of each batch done.
    """
    device = next(model.parameters()).device
    model.eval()
    parts, documents = list[dict[str, Column]](), list[NDArray[np.int32]]()
    vocabulary = StudentVocabulary.of(model, dataset.manifest.teacher.vocab_size)
    head = LMHead.from_model(model).narrowed(vocabulary.masked_width(extra_ids))
    for batch in _batches(dataset, batch_sequences, vocabulary):
        with torch.inference_mode():
            moved = _move(batch, device)
            hidden = hidden_states(model, moved["input_ids"], moved["position_ids"])
            hidden_TD = hidden.flatten(0, 1).index_select(0, moved["slots"])
            parts.extend(_measure_in_chunks(hidden_TD, head, moved, sampled_tail=_sampled(dataset)))
        documents.append(batch["documents"].numpy())
        progress(len(batch["slots"]))
    return _ordered(dataset, documents, parts)


def evaluate_teacher(dataset: CaskDataset, *, batch_sequences: int) -> Columns:
    """The teacher's own figures at every position, from the records alone."""
    parts, documents = [], []
    for batch in _batches(dataset, batch_sequences):
        columns = teacher_columns(target_of(batch, sampled_tail=_sampled(dataset)), batch["entropy"])
        parts.append({name: value.numpy() for name, value in columns.items()})
        documents.append(batch["documents"].numpy())
    return _ordered(dataset, documents, parts)


def _ordered(dataset: CaskDataset, documents: list[NDArray[np.int32]], parts: list[dict[str, Column]]) -> Columns:
    """What was measured in the order of the sequences, in the order of the documents."""
    order_P = document_order(dataset)
    values = {name: value[order_P] for name, value in _concatenated(parts).items()}
    return Columns(documents_P=np.concatenate(documents)[order_P], values=values)


def _sampled(dataset: CaskDataset) -> bool:
    return dataset.manifest.capture.mode != "topk"


def _batches(
    dataset: CaskDataset, batch_sequences: int, vocabulary: StudentVocabulary | None = None
) -> Iterator[Batch]:
    collate = Collator(seq_len=dataset.seq_len, vocabulary=vocabulary)
    for start in range(0, len(dataset), batch_sequences):
        yield collate(dataset.read(range(start, min(start + batch_sequences, len(dataset)))))


def _measure_in_chunks(
    hidden_TD: torch.Tensor, head: LMHead, batch: Batch, *, sampled_tail: bool
) -> Iterator[dict[str, Column]]:
    target, tail = target_of(batch, sampled_tail=sampled_tail), batch["tail_logprobs"]
    rows = default_rows(head)
    for start in range(0, len(hidden_TD), rows):
        stop = min(start + rows, len(hidden_TD))
        draws = slice(int(target.tail_offsets_R1[start]), int(target.tail_offsets_R1[stop]))
        measured = measure(
            head.logits(hidden_TD[start:stop]).float(),
            target.rows(start, stop),
            batch["entropy"][start:stop],
            None if tail is None else tail[draws],
        )
        yield {name: value.cpu().numpy() for name, value in measured.items()}


def _move(batch: Batch, device: torch.device) -> Batch:
    moved: Any = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return moved  # type: ignore[no-any-return]


def _concatenated(parts: list[dict[str, Column]]) -> dict[str, Column]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
