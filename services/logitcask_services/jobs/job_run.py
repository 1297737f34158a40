"""What the worker and the watchdog ask of one run of one job, of whichever kind; the code under which a job fails."""

from typing import Literal, Protocol

from logitcask_schemas.errors import CaptureSpecError, CaskError, CaskVersionError, IdentityMismatchError
from logitcask_services.generation.errors import AnswersMisplacedError, RecipeError
from logitcask_services.jobs.answer_files import AnswersDamagedError
from logitcask_services.jobs.executors.corpus_capture import WorkerRefusedError
from logitcask_services.jobs.waiting import Reason

Outcome = Literal["done", "ended", "document_failed"]
Ending = tuple[Literal["completed", "failed"], Reason | None]


class JobRun(Protocol):
    """One run of one job, of whichever kind."""

    @property
    def job_id(self) -> str:
        """Whose run it is."""
        ...

    @property
    def set_aside(self) -> Reason | None:
        """Why the run gave way to others, where it did."""
        ...

    def go(self) -> Outcome:
        """Do all that the teacher is needed for. Raises TeacherDiedError, OSError, LogitcaskError."""
        ...

    def finalize(self) -> Ending | None:
        """What is left to do without the teacher; how the job ended, or None where it is written down already."""
        ...

    def record_failure(self) -> None:
        """Write down that one document or row ended the job (outcome `document_failed`)."""
        ...

    def record_death(self, reason: str) -> None:
        """Write down that the teacher died in this run."""
        ...

    def note_hang(self, reason: str) -> None:
        """Called from the watchdog's thread: the teacher hangs, and this process is about to end."""
        ...

    def note_cancelled(self) -> None:
        """Called from the watchdog's thread: the job was cancelled, and the teacher is deep in its work."""
        ...

    def close(self) -> None:
        """End what the run has begun. Idempotent."""
        ...


def failure_code(error: Exception) -> str:
    """The code of the error that ended a job, which no waiting cures, as callers see it."""
    match error:
        case RecipeError():
            return "recipe_invalid"
        case AnswersDamagedError():
            return "answers_damaged"
        case AnswersMisplacedError():
            return "answers_misplaced"
        case IdentityMismatchError():
            return "cask_mismatch"
        case CaskVersionError():
            return "cask_version"
        case CaptureSpecError():
            return "capture_invalid"
        case CaskError():
            return "cask_unusable"
        case OSError():
            return "io_error"
        case WorkerRefusedError():
            return "worker_refused"
        case _:
            return "internal"
