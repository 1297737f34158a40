"""Mean squared error of states, with a learned projection where widths differ."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import layer_norm

from logitcask_consumer.hints.hint_loss import HintTerm, Projection, Sides, StateLoss, register_hint
from logitcask_consumer.hints.projection import AsStored

Norm = Literal["none", "layer"]


@register_hint
@dataclass(frozen=True, kw_only=True)
class MeanSquares(StateLoss):
    """Mean squared error between states, projected by a learned matrix where widths differ; summed over layers.

    Formula, per position and pair of layers with states h_s [D], h_t [D'] and the learned W' [D', D]::

        (1 / D') | n(W' h_s) - n(h_t) |^2

    where n is the identity (`norm=none`), in squared units of the teacher's states, or subtracts the mean and divides
    by the standard deviation over the numbers (`norm=layer`; 1e-5 is added to the variance), without a unit. Of codec
    proj:N, which keeps lengths, W' and h_t are projected to N numbers and D' stays; with `norm=layer` it is N. Romero
    et al., "FitNets", arXiv 1412.6550; Jiao et al., "TinyBERT", arXiv 1909.10351 (L_hidn, map `uniform`); Sun et al.,
    "MobileBERT", arXiv 2004.02984 (layer to layer; its FMT has mean and variance too). Causal models have channels a
    thousand times the others: without a norm these are nearly all of it.
    """

    name: ClassVar[str] = "mse"
    projection: Projection = "auto"
    norm: Norm = "none"

    def term(self, sides: Sides) -> HintTerm:
        """Between two layers."""
        divisor = sides.teacher_width if self.norm == "none" else sides.stored
        return _SquaresTerm(AsStored(sides, self.projection, loss=self.name), self.norm, divisor)


class _SquaresTerm(HintTerm):
    def __init__(self, as_stored: AsStored, norm: Norm, divisor: int) -> None:
        super().__init__()
        self.as_stored, self.norm, self.divisor = as_stored, norm, divisor

    def forward(self, student_TD: Tensor, teacher_TW: Tensor, documents_T: Tensor) -> Tensor:
        """Values [T]."""
        del documents_T
        state_TW: Tensor = self.as_stored(student_TD)
        if self.norm == "layer":
            shape = state_TW.shape[1:]
            state_TW, teacher_TW = layer_norm(state_TW, shape), layer_norm(teacher_TW, shape)
        return (state_TW - teacher_TW).square().sum(1) / self.divisor
