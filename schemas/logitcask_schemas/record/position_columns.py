"""Columns of a record with a fixed number of values per position, each declared once, here.

What stores, cuts, joins, packs, collates and checks records goes through this list in its order, which is that of the
wire and of the cask. A new column is one entry here, the code that computes it (`RecordCapture`), and whoever reads it.

Shape legend: P positions, W values of a column per position.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from logitcask_schemas.record.capture_spec import CaptureSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionColumn:
    """A column [P], or [P, W]."""

    name: str
    dtype: np.dtype[Any] | None = None
    """None: that of the spec's codec, float16 or float32."""
    asked_by: str | None = None
    """Field of the capture spec that asks for it by not being empty; None: every record has it. Where the field is a
    tuple, W is its length."""
    width: int | None = None
    """W where it follows from nothing else; None: one value per position, shape [P]."""

    def is_stored(self, spec: CaptureSpec) -> bool:
        """Whether records of this spec have the column."""
        return self.asked_by is None or bool(getattr(spec, self.asked_by))

    def width_of(self, spec: CaptureSpec) -> int | None:
        """W of a column that is stored; None for shape [P]."""
        asked = None if self.asked_by is None else getattr(spec, self.asked_by)
        return len(asked) if isinstance(asked, tuple) else self.width


POSITION_COLUMNS = [
    PositionColumn(name="log_tail_mass"),
    PositionColumn(name="entropy"),
    PositionColumn(name="log_z", asked_by="temperatures"),
]
"""In the order of the wire and of the cask."""


def stored_columns(spec: CaptureSpec) -> list[PositionColumn]:
    """Those that records of this spec have."""
    return [column for column in POSITION_COLUMNS if column.is_stored(spec)]
