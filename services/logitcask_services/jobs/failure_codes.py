"""Under which code a job fails: that of the error which no waiting cures."""

from logitcask_schemas.errors import CaptureSpecError, CaskError, CaskVersionError, IdentityMismatchError
from logitcask_services.generation.errors import AnswersMisplacedError, RecipeError
from logitcask_services.jobs.answer_files import AnswersDamagedError
from logitcask_services.jobs.executors.corpus_capture import WorkerRefusedError


def failure_code(error: Exception) -> str:
    """The code of a job's error, as callers see it."""
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
