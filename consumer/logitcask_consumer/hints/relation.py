"""Self-attention relations of queries, keys and values within each document, MiniLM v2's.

Shape legend: L trained positions of a document, A relation heads, d numbers of a relation head.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from logitcask_consumer.hints.hint_loss import (
    HintLoss,
    HintMismatchError,
    HintTerm,
    Sides,
    parts_text,
    register_hint,
)
from logitcask_consumer.hints.layer_map import require_map
from logitcask_consumer.losses import LossParameterError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintKind


@register_hint
@dataclass(frozen=True, kw_only=True)
class Relation(HintLoss):
    """KL between relations of values, or of queries, keys and values, within each document, of one layer.

    Formula: the vectors X (queries, keys or values of all attention heads end to end, [L, D]) of a document are cut
    anew into A relation heads of d = D / A numbers; so student and teacher may have other widths and head counts. The
    relation of head a is R_a = softmax(X_a X_a^T / sqrt(d)), [L, L], and the loss at position i::

        sum over X of (1 / A) sum_a KL( R_a(teacher)[i] || R_a(student)[i] )

    in nats; its mean over positions is the paper's 1 / (A |x|) sum. Wang et al., "MiniLMv2", arXiv 2012.15828, eq. 5 to
    7. Of `v` it is the value relation alone; of `qkv` all three count 1. The positions of a document are those that
    are trained: those of weight 0 have no part in the relations. Relations reach to later positions too, as in the
    paper. Memory: A L^2 numbers for a document at a time, kept for the backward pass.
    """

    name: ClassVar[str] = "relation"
    kinds: ClassVar[tuple[HintKind, ...]] = ("v", "qkv")
    whole_documents: ClassVar[bool] = True
    layer: str = "last"
    """`last`, or a pair S:T of layers; any map, see `layer_map`."""
    heads: int = 8
    """A; divides the widths of both sides."""

    def __post_init__(self) -> None:
        """Raise LossParameterError for what is no map, or no number of heads."""
        require_map(self.layer)
        if self.heads < 1:
            raise LossParameterError(f"hint loss 'relation': heads is at least 1, got {self.heads}")

    @property
    def layers(self) -> str:
        """The map."""
        return self.layer

    def missing(self, capture: CaptureSpec) -> list[str]:
        """A projection mixes what heads keep apart."""
        missing = super().missing(capture)
        if capture.hints is not None and capture.hints.projected is not None:
            missing.append("vectors as they are (capture with hints.codec f16 or i8: a projection mixes the heads)")
        return missing

    def term(self, sides: Sides) -> HintTerm:
        """Between two layers.

        Raises:
            HintMismatchError: a width is no multiple of the number of relation heads, or the parts do not add up.
        """
        if sum(sides.teacher_parts) != sides.teacher_width:
            raise HintMismatchError(
                f"hint loss 'relation': the cask's vectors of {sides.of} have {sides.teacher_width} numbers, by the "
                f"teacher's config.json they would have {parts_text(sides.teacher_parts)}: name the folder of the "
                "cask's teacher (--teacher)"
            )
        for whose, parts in (("student", sides.student_parts), ("teacher", sides.teacher_parts)):
            if any(width % self.heads for width in parts):
                raise HintMismatchError(
                    f"hint loss 'relation': {self.heads} relation heads do not divide the {whose}'s {sides.of} of "
                    f"{parts_text(parts)} numbers; give heads=A with a divisor of all"
                )
        return _RelationTerm(sides, self.heads)


class _RelationTerm(HintTerm):
    def __init__(self, sides: Sides, heads: int) -> None:
        super().__init__()
        self.student_parts, self.teacher_parts = list(sides.student_parts), list(sides.teacher_parts)
        self.heads = heads

    def forward(self, student_TD: Tensor, teacher_TW: Tensor, documents_T: Tensor) -> Tensor:
        """Values [T]."""
        if not len(documents_T):
            return student_TD.sum(1)
        _, counts = torch.unique_consecutive(documents_T, return_counts=True)
        stops = list(accumulate(counts.tolist()))
        values = [
            self._of_document(student_TD[start:stop], teacher_TW[start:stop])
            for start, stop in zip([0, *stops], stops, strict=False)
        ]
        return torch.cat(values)

    def _of_document(self, student_LD: Tensor, teacher_LD: Tensor) -> Tensor:
        value_L = student_LD.new_zeros(len(student_LD))
        ours = torch.split(student_LD, self.student_parts, 1)
        theirs = torch.split(teacher_LD, self.teacher_parts, 1)
        for ours_LD, theirs_LD in zip(ours, theirs, strict=True):
            ours_ALL, theirs_ALL = self._log_relation(ours_LD), self._log_relation(theirs_LD)
            value_L = value_L + (theirs_ALL.exp() * (theirs_ALL - ours_ALL)).sum(2).mean(0)
        return value_L

    def _log_relation(self, vectors_LD: Tensor) -> Tensor:
        heads_ALd = vectors_LD.view(len(vectors_LD), self.heads, -1).transpose(0, 1)
        return log_softmax(heads_ALd @ heads_ALd.mT * heads_ALd.shape[2] ** -0.5, dim=2)
