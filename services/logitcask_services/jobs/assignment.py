"""Whose a queued job is: the teacher that it names, and whether that is still the one that prepared or began it."""

from typing import Final

from logitcask_schemas.errors import CaptureSpecError, ModelError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.hint_shape import resolve_hints
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.extractions import TOKENS
from logitcask_services.jobs.database.generations import WEIGHTS
from logitcask_services.jobs.database.tables import ExtractionRow, GenerationRow, JobRow
from logitcask_services.jobs.loaded_teacher import Role, TeacherFacts
from logitcask_services.jobs.teacher_names import TeacherNameError, is_student
from logitcask_services.jobs.waiting import Reason

_AGAIN: Final = "cancel and submit again"


def role_of(row: JobRow) -> Role:
    """What the teacher must be loaded for."""
    return "generate" if isinstance(row, GenerationRow) else "capture"


def hints_of(row: JobRow, facts: TeacherFacts | None) -> HintSpec | None:
    """The hints that a job asks for, as the teacher counts layers; None where the run will say what is wrong."""
    if not isinstance(row, ExtractionRow) or facts is None:
        return None
    try:
        return resolve_hints(row.request.capture, facts.hint_shape).hints
    except CaptureSpecError:
        return None


class Assignment:
    """Of the jobs of one service."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def name_of(self, row: JobRow) -> str:
        """The teacher that a job is for."""
        return self._context.teacher_name(row.request.teacher)

    def facts_of(self, row: JobRow) -> TeacherFacts | None:
        """What is known of that teacher; None where nothing is, or nothing can be: its loading says why."""
        try:
            return self._context.facts_of(row.request.teacher)
        except (ModelError, TeacherNameError, OSError):
            return None

    def hindrance(self, row: JobRow) -> Reason | None:
        """Why a queued job cannot be begun, whoever is loaded; None where it can, or where loading will tell."""
        name = self.name_of(row)
        try:
            self._context.roster.require(name, role_of(row))
        except TeacherNameError as error:
            if is_student(name):
                return None  # the job ends with that reason: nobody but its caller can put it right
            return error.code, f"{error}; start the service with that teacher, or {_AGAIN}"
        if not is_student(name) and (fault := self._context.teacher.fault_of(name)) is not None:
            return "teacher_failed", f"{name} was given up: {fault}. The next start of the service tries it again"
        if (rest := self._context.teacher.setbacks.rest_of(name)) is not None and rest.yields:
            return "teacher_unavailable", rest.reason
        facts = self.facts_of(row)
        return None if facts is None else self._stranger(row, facts)

    def _stranger(self, row: JobRow, facts: TeacherFacts) -> Reason | None:
        """Why the teacher of that name is not the one that prepared or began the job; None where it may be."""
        theirs = row.teacher or {}
        if isinstance(row, ExtractionRow):
            bound, advice = "its tokens were made for", _AGAIN
            # Tokens that nobody is known to have made are nobody's.
            differing = [member for member in TOKENS if not theirs or theirs.get(member) != getattr(facts, member)]
        else:
            bound, advice = "it was begun by", "cancel and generate again"
            differing = [
                member
                for member in WEIGHTS
                if theirs and facts.identity is not None and theirs.get(member) != getattr(facts.identity, member)
            ]
        if not differing:
            return None
        return (
            "other_teacher",
            f"{bound} the teacher {theirs.get('model')!r}, this service runs {facts.model!r}, which is another one "
            f"(different: {', '.join(differing)}); start the service with that teacher, or {advice}",
        )
