"""The states of an extraction and the steps between them.

validating -> queued -> in_progress -> finalizing -> completed; side exits failed, cancelling -> cancelled.
in_progress and finalizing go back to queued when the server or the teacher restarts, or when they wait for something
that others do not need. `completed` says that the run ended; documents that failed are counted and listed. A failed
extraction may be taken up again where it was.
"""

from typing import Literal, get_args

from logitcask_schemas.errors import LogitcaskError

Status = Literal["validating", "queued", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
FINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled"})

STEPS: dict[Status, frozenset[Status]] = {
    "validating": frozenset({"queued", "failed", "cancelling"}),
    "queued": frozenset({"in_progress", "failed", "cancelled"}),
    "in_progress": frozenset({"finalizing", "queued", "failed", "cancelling"}),
    "finalizing": frozenset({"completed", "queued", "failed"}),
    "cancelling": frozenset({"cancelled"}),
    "completed": frozenset(),
    "failed": frozenset({"queued", "validating"}),
    "cancelled": frozenset(),
}


class IllegalTransitionError(LogitcaskError, ValueError):
    """An extraction cannot go from where it is to where it was told to go."""

    def __init__(self, extraction_id: str, current: str, wanted: str) -> None:
        hint = "; only a failed one can be resumed" if wanted in ("validating", "queued") else ""
        super().__init__(f"extraction {extraction_id} is {current} and cannot become {wanted}{hint}")
        self.current = current
        self.wanted = wanted


def check_step(extraction_id: str, current: Status, wanted: Status) -> None:
    """Raise IllegalTransitionError unless `wanted` may follow `current`."""
    if wanted not in STEPS[current]:
        raise IllegalTransitionError(extraction_id, current, wanted)
