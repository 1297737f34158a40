"""Cosine loss of one layer, DistilBERT's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from logitcask_consumer.hints.hint_loss import HintLoss, HintTerm, Projection, Sides, register_hint
from logitcask_consumer.hints.layer_map import require_map
from logitcask_consumer.hints.projection import AsStored


@register_hint
@dataclass(frozen=True, kw_only=True)
class Cosine(HintLoss):
    """1 - cos between states of one layer, so that their directions agree.

    Formula, per position with states h_s [D] and h_t [D]::

        1 - h_s . h_t / (|h_s| |h_t|)

    from 0 to 2, without a unit. Sanh et al., "DistilBERT", arXiv 1910.01108 (L_cos, on the last layer).
    """

    name: ClassVar[str] = "cosine"
    layer: str = "last"
    """`last`, or a pair S:T of layers; any map, see `layer_map`."""
    projection: Projection = "none"

    def __post_init__(self) -> None:
        """Raise LossParameterError for what is no map."""
        require_map(self.layer)

    @property
    def layers(self) -> str:
        """The map."""
        return self.layer

    def term(self, sides: Sides) -> HintTerm:
        """Between two layers."""
        return _CosineTerm(AsStored(sides, self.projection, loss=self.name))


class _CosineTerm(HintTerm):
    def __init__(self, as_stored: AsStored) -> None:
        super().__init__()
        self.as_stored = as_stored

    def forward(self, student_TD: Tensor, teacher_TW: Tensor, documents_T: Tensor) -> Tensor:
        """Values [T]."""
        del documents_T
        return 1.0 - cosine_similarity(self.as_stored(student_TD), teacher_TW, dim=1)
