"""The student's forward pass with chunk losses inside it; why it is done so is said in `student_forward`.

Shape legend: B sequences, S slots, R rows, D hidden size, V the student's vocabulary.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from logitcask_consumer.cross_tokenizer.chunk_head import ChunkTerms, chunk_distillation_loss
from logitcask_consumer.cross_tokenizer.target import ChunkTarget
from logitcask_consumer.head import LMHead
from logitcask_consumer.student.forward import hidden_states


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTask:
    """What the forward pass needs to yield a loss."""

    target: ChunkTarget
    slots_R: Tensor
    """Flat index b·S + s of each row, int64."""
    terms: ChunkTerms
    closing_V: Tensor
    """bool: the student's tokens that begin a new word."""
    chunk_rows: int | None = None


def attach_chunks(model: Any) -> None:
    """Give a causal LM, and its output embedding, the forward that understands a `ChunkTask` as `distill=`."""
    layer = model.get_output_embeddings()
    plain, plain_head = model.forward, layer.forward

    def forward(*args: Any, distill: ChunkTask | None = None, **kwargs: Any) -> Any:
        if distill is None:
            return plain(*args, **kwargs)
        assert not args, "input_ids and position_ids are given by name"
        hidden_BSD = hidden_states(model, **kwargs)
        return layer(hidden_BSD.flatten(0, 1).index_select(0, distill.slots_R), distill=distill)

    def head_forward(*args: Any, distill: ChunkTask | None = None, **kwargs: Any) -> Any:
        if distill is None:
            return plain_head(*args, **kwargs)
        return _losses(LMHead.from_model(model), distill, *args)

    model.forward, layer.forward = forward, head_forward


def _losses(head: LMHead, task: ChunkTask, hidden_RD: Tensor) -> dict[str, Tensor]:
    result = chunk_distillation_loss(
        hidden_RD, head, task.target, task.terms, closing_V=task.closing_V, chunk_rows=task.chunk_rows
    )
    return {"loss": result.loss, "terms_K": result.terms_K, "ce": result.ce}
