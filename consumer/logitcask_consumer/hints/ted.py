"""Mean squared error to the teacher's states after a task-aware filter, TED's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import linear

from logitcask_consumer.hints.hint_loss import HintTerm, Sides, StateLoss, register_hint
from logitcask_consumer.hints.projection import AsStored
from logitcask_consumer.losses import LossParameterError
from logitcask_schemas.record.capture_spec import CaptureSpec


@register_hint
@dataclass(frozen=True, kw_only=True)
class TaskAware(StateLoss):
    """Mean squared error to what a filter of the teacher's layer keeps for its task; summed over pairs of layers.

    Formula, per position and pair of layers with states h_s [D] and h_t [D'], the teacher's filter F [D', D'] and the
    student's G [D', D], learned beside it, and u(h) = h sqrt(D) / |h|::

        (1 / D') | G u(h_s) - F u(h_t) |^2

    without a unit. Liang et al., "Less is More: Task-aware Layer-wise Distillation", arXiv 2210.01351 (TED). F is made
    before the student is trained, once, from the cask's states and the teacher's head, so that head(F u(h_t)) predicts
    the next token; see `filters`. Two deviations: states are brought to one length first, since a causal model's grow
    a thousandfold from layer to layer, and the student's filter begins at random rather than with a stage of its own.
    """

    name: ClassVar[str] = "ted"
    filtered: ClassVar[bool] = True
    steps: int = 200
    """Of making the teacher's filters."""
    rate: float = 1e-3
    """Learning rate of making them, of Adam."""

    def __post_init__(self) -> None:
        """Raise LossParameterError for what is out of range."""
        StateLoss.__post_init__(self)
        if self.steps < 1 or not 0 < self.rate < 1:
            raise LossParameterError(
                f"hint loss 'ted': steps is at least 1, rate above 0 and below 1, got {self.steps} and {self.rate}"
            )
        if self.projection != "none":
            raise LossParameterError("hint loss 'ted' has a learned filter always: leave projection out")

    def missing(self, capture: CaptureSpec) -> list[str]:
        """A filter reads the state itself."""
        missing = super().missing(capture)
        if capture.hints is not None and capture.hints.projected is not None:
            missing.append(
                "states as they are (capture with hints.codec f16 or i8: the teacher's head reads no others)"
            )
        return missing

    def term(self, sides: Sides) -> HintTerm:
        """Between two layers, with the teacher's filter."""
        assert sides.filter_DD is not None, "filters are made before"
        return _FilteredTerm(AsStored(sides, "learned", loss=self.name), sides.filter_DD)


class _FilteredTerm(HintTerm):
    filter_DD: Tensor

    def __init__(self, student_filter: AsStored, filter_DD: Tensor) -> None:
        super().__init__()
        self.student_filter = student_filter
        self.register_buffer("filter_DD", filter_DD, persistent=False)

    def forward(self, student_TD: Tensor, teacher_TW: Tensor, documents_T: Tensor) -> Tensor:
        """Values [T]."""
        del documents_T
        kept_TD = linear(of_unit_size(teacher_TW), self.filter_DD.to(teacher_TW.dtype))
        difference_TD: Tensor = self.student_filter(of_unit_size(student_TD)) - kept_TD
        return difference_TD.square().mean(1)


def of_unit_size(state_TD: Tensor) -> Tensor:
    """The state with a root mean square of 1; one of zeros stays so."""
    # The bound stands before the root, whose gradient at 0 is infinite.
    size_T1 = state_TD.square().mean(1, keepdim=True).clamp(min=1e-24).sqrt()
    return state_TD / size_T1
