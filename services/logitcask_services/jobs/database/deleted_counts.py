"""What deleted jobs have counted, so that counters over all jobs never fall when one is deleted.

A counter that falls reads as a restart to Prometheus, whose rates then count all that is left as new.
"""

from typing import Final

from sqlalchemy.orm import Session

from logitcask_services.jobs.database.tables import ExtractionRow, GenerationRow, JobRow, ServiceStateRow

_NAME: Final = "deleted_counts"
_COUNTED: Final[dict[type[JobRow], tuple[str, ...]]] = {
    ExtractionRow: ("tokens_captured", "captured_documents", "failed_documents", "bytes_written"),
    GenerationRow: ("generated_tokens",),
}


def deleted_counts(session: Session) -> dict[str, int]:
    """Sums over all deleted jobs, by the name of the column."""
    state = session.get(ServiceStateRow, _NAME)
    return {} if state is None else dict(state.value)


def keep_counts(session: Session, row: JobRow) -> None:
    """Add what a job counted, which is deleted in the caller's transaction."""
    counts = deleted_counts(session)
    for name in _COUNTED[type(row)]:
        counts[name] = counts.get(name, 0) + getattr(row, name)
    session.merge(ServiceStateRow(name=_NAME, value=counts))
