"""From a student's state to the numbers that the teacher's is stored as.

Shape legend: T positions, D width of the student's state, W stored numbers of the teacher's, N of codec proj:N.

    widths equal, codec f16 or i8    the state itself
    widths equal, codec proj:N       times the same seeded matrix that the teacher's was multiplied with
    a learned projection             times W', [D, W], trained beside the student (FitNets, arXiv 1412.6550; TinyBERT,
                                     arXiv 1909.10351), straight to what is stored
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from logitcask_consumer.hints.hint_loss import HintMismatchError, Projection, Sides
from logitcask_schemas.record.hints import projection_DN


class AsStored(nn.Module):
    """Multiplies a student's state with a matrix, or leaves it as it is."""

    def __init__(self, sides: Sides, projection: Projection, *, loss: str) -> None:
        """Choose the matrix.

        Args:
            sides: the widths.
            projection: how states become comparable.
            loss: its name, for messages.

        Raises:
            HintMismatchError: the widths differ and nothing may be learned.
        """
        super().__init__()
        same = sides.student_width == sides.teacher_width
        self.learned_WD: nn.Parameter | None = None
        self.seeded_ND: Tensor | None
        self.register_buffer("seeded_ND", None, persistent=False)
        if projection == "learned" or (projection == "auto" and not same):
            weight_WD = torch.empty(sides.stored, sides.student_width)
            # As torch.nn.Linear begins: the projected state is about a student's state in size.
            nn.init.uniform_(weight_WD, -(sides.student_width**-0.5), sides.student_width**-0.5)
            self.learned_WD = nn.Parameter(weight_WD)
        elif not same:
            raise HintMismatchError(
                f"hint loss {loss!r} compares states as they are: those of the student have {sides.student_width} "
                f"numbers, those of the cask's teacher {sides.teacher_width}. Learn a projection: "
                f"{loss}:projection=auto, or mse, which does by default; or take a student of the same width"
            )
        elif sides.projected is not None:
            matrix_DN = projection_DN(sides.seed, sides.teacher_width, sides.projected)
            self.seeded_ND = torch.from_numpy(matrix_DN.T.copy())

    def forward(self, state_TD: Tensor) -> Tensor:
        """The state as the teacher's is stored, [T, W], of its own dtype."""
        matrix = self.learned_WD if self.learned_WD is not None else self.seeded_ND
        return state_TD if matrix is None else linear(state_TD, matrix.to(state_TD.dtype))
