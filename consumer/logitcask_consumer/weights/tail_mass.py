"""A gate by how much of the teacher's distribution the record holds exactly."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.weight import Positions, RecordWeight, in_range, register


@register
@dataclass(frozen=True, kw_only=True)
class TailMass(RecordWeight):
    """1 where the teacher's mass outside the record's head is at most `most`, else 0.

    Formula: w_i = [r_i <= most], r the exact tail mass of the record, a probability. For losses that treat the tail as
    one bucket (`ghost_kl`, top-k captures) it leaves out the positions where that bound is loosest.
    """

    name: ClassVar[str] = "tail_mass"
    most: float = 0.5

    def __post_init__(self) -> None:
        """Check it."""
        in_range(self, "most", 0.0, 1.0)

    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """Whether the tail mass is at most `most`, [P]."""
        return np.exp(positions.records.log_tail_mass_P.astype(np.float32)) <= self.most
