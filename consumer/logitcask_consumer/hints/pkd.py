"""Squared distance of normalised states, Patient KD's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from logitcask_consumer.hints.hint_loss import HintTerm, Sides, StateLoss, register_hint
from logitcask_consumer.hints.projection import AsStored


@register_hint
@dataclass(frozen=True, kw_only=True)
class PatientKD(StateLoss):
    """Squared distance between states of length 1, summed over pairs of layers.

    Formula, per position and pair of layers with states h_s [D] and h_t [D]::

        | h_s / |h_s| - h_t / |h_t| |^2

    from 0 to 4, without a unit. Sun et al., "Patient Knowledge Distillation", arXiv 1908.09355 (L_PT; at the [CLS]
    token there, at every position of a causal model here; their maps are `last` and `skip`).
    """

    name: ClassVar[str] = "pkd"

    def term(self, sides: Sides) -> HintTerm:
        """Between two layers."""
        return _PatientTerm(AsStored(sides, self.projection, loss=self.name))


class _PatientTerm(HintTerm):
    def __init__(self, as_stored: AsStored) -> None:
        super().__init__()
        self.as_stored = as_stored

    def forward(self, student_TD: Tensor, teacher_TW: Tensor, documents_T: Tensor) -> Tensor:
        """Values [T]."""
        del documents_T
        return (normalize(self.as_stored(student_TD), dim=1) - normalize(teacher_TW, dim=1)).square().sum(1)
