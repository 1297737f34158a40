"""A graded weight by the teacher's confidence."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.weight import Positions, RecordWeight, in_range, register


@register
@dataclass(frozen=True, kw_only=True)
class TeacherConfidence(RecordWeight):
    """The teacher's confidence 1 - H(t) / log V, between 0 and 1, to a power.

    Formula: w_i = (1 - H(t_i) / log V)^power, H(t) in nats, exact from the record's column, V the size of the
    vocabulary. 1 where the teacher is certain, 0 where its distribution is flat: the complement of the normalised
    entropy that token weights are built from in EGAD, arXiv 2605.01732.
    """

    name: ClassVar[str] = "teacher_confidence"
    reads_entropy: ClassVar[bool] = True
    graded: ClassVar[bool] = True
    power: float = 1.0

    def __post_init__(self) -> None:
        """Check it."""
        in_range(self, "power", 0.0, 100.0)

    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """The confidence to the power, [P], float32."""
        entropy_P = positions.records.entropy_P.astype(np.float32)
        confidence_P = np.clip(1.0 - entropy_P / math.log(max(positions.vocab_size, 2)), 0.0, 1.0)
        weights_P: NDArray[np.float32] = np.power(confidence_P, np.float32(self.power))
        return weights_P
