"""Which task the teacher is suspected to die on."""

from dataclasses import dataclass


@dataclass(slots=True)
class Suspicion:
    """Kept by the worker from one run of a job to the next."""

    job_id: str | None = None
    number: int | None = None
    """Of a document, or of a request."""
    blamed: bool = False
    """Whether one was blamed and none has come back since."""

    def suspect(self, job_id: str, number: int) -> None:
        """The teacher died while it worked on this one alone, but after others."""
        self.job_id, self.number = job_id, number

    def suspect_of(self, job_id: str) -> int | None:
        """The one to try first, or None."""
        return self.number if self.job_id == job_id else None

    def clear(self) -> None:
        """The suspect is innocent, or has been dealt with."""
        self.job_id = self.number = None
