"""A gate by the teacher's entropy."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.weight import Positions, RecordWeight, WeightParameterError, register


@register
@dataclass(frozen=True, kw_only=True)
class TeacherEntropy(RecordWeight):
    """1 where the teacher's entropy lies between `least` and `most` nats, else 0.

    Formula: w_i = [least <= H(t_i) <= most]. H(t) is exact, from the record's column. `most` keeps positions of which
    the teacher is sure, `least` those that carry a choice. Token-level selection by teacher entropy: EGAD,
    arXiv 2605.01732 (from low to high during training; here the bounds are fixed).
    """

    name: ClassVar[str] = "teacher_entropy"
    reads_entropy: ClassVar[bool] = True
    least: float = 0.0
    most: float = math.inf

    def __post_init__(self) -> None:
        """Check both."""
        if not 0.0 <= self.least <= self.most:
            raise WeightParameterError(
                f"weight 'teacher_entropy' needs 0 <= least <= most, in nats, got least={self.least:g} and "
                f"most={self.most:g}"
            )

    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """Whether the entropy lies within the bounds, [P]."""
        entropy_P = positions.records.entropy_P.astype(np.float32)
        return (entropy_P >= self.least) & (entropy_P <= self.most)
