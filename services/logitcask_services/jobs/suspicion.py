"""Which document kills the teacher: suspected, tried alone on a fresh teacher, and only then blamed.

A teacher that is broken dies on every document; without the trial it would blame them all. Blame counts as progress
only once the next teacher has captured something, so a broken one is given up after its bounded number of restarts.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Suspicion:
    """Kept by the worker from one run of an extraction to the next."""

    extraction_id: str | None = None
    document: int | None = None
    blamed: bool = False
    """Whether a document was blamed and no document has been captured since."""

    def suspect(self, extraction_id: str, document: int) -> None:
        """The teacher died while it worked on this document alone, but after others."""
        self.extraction_id, self.document = extraction_id, document

    def suspect_of(self, extraction_id: str) -> int | None:
        """The document to try first, or None."""
        return self.document if self.extraction_id == extraction_id else None

    def clear(self) -> None:
        """The suspect is innocent, or has been dealt with."""
        self.extraction_id = self.document = None
