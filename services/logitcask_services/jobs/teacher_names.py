"""Names of teachers and students, and why one cannot be asked for."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.jobs.loaded_teacher import Role

STUDENTS: Final = "students/"
"""What the names of students begin with."""
RefusalCode = Literal[
    "unknown_teacher", "students_refused", "student_unusable", "teacher_cannot_capture", "teacher_cannot_generate"
]

CANNOT: Final[Mapping[Role, RefusalCode]] = {
    "capture": "teacher_cannot_capture",
    "generate": "teacher_cannot_generate",
}


class TeacherNameError(LogitcaskError, LookupError):
    """A name that nobody has here, or that may not be asked for this."""

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code: RefusalCode = code


def name_of_model(model: Path | None) -> str:
    """The name of a teacher that nobody gave one: its folder's or repository's, as a request can say it."""
    last = "teacher" if model is None else Path(str(model).partition("@")[0]).resolve().name
    return re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip(".-_")[:128] or "teacher"


def is_student(name: str) -> bool:
    """Whether a name is a student's."""
    return name.startswith(STUDENTS)


def require_listed(name: str, names: Sequence[str], *, has_students: bool) -> None:
    """Raise TeacherNameError where a teacher is not one of these."""
    if is_student(name):
        if has_students:
            return
        raise TeacherNameError(
            "students_refused",
            f"{name}: this service loads no students; its operator may name their folder with `logitcask serve "
            f"--students DIR`. There are: {', '.join(names)}",
        )
    if name not in names:
        students = f", or {STUDENTS}NAME for a generation" if has_students else ""
        raise TeacherNameError(
            "unknown_teacher", f"there is no teacher {name!r} here; there are: {', '.join(names)}{students}"
        )
