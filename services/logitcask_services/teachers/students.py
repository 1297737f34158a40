"""Students that a service lets write: direct sub-folders of one folder, each a whole model, loaded as they are now.

Weights are never loaded into a running engine: an engine that was started with other weights is not asked again.
"""

import re
from pathlib import Path
from typing import Final

from logitcask_schemas.api.requests import NAME_RULE
from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import ModelSource
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.weight_files import files_digest
from logitcask_services.jobs.teacher_names import STUDENTS, TeacherNameError
from logitcask_services.teachers.outline import file_stamp

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class StudentFolders:
    """The students of a service.

    Args:
        folder: holds a folder for each.

    Raises:
        ModelError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ModelError(f"the folder of students, {folder}, is not there; make it first")
        self._folder = folder.resolve()

    def source(self, name: str) -> ModelSource:
        """Where a student lies. Raises TeacherNameError where the name is none, or what is there is no plain folder."""
        own = name.removeprefix(STUDENTS)
        if name == own or not _NAME.fullmatch(own):
            raise TeacherNameError(
                "student_unusable", f"{name!r} is no student's name: expected {STUDENTS}NAME, {NAME_RULE}"
            )
        path = self._folder / own
        if path.is_symlink() or not path.is_dir():
            there = sorted(each.name for each in self._folder.iterdir() if each.is_dir() and not each.is_symlink())
            found = "a symbolic link" if path.is_symlink() else "a file" if path.exists() else "nothing"
            listing = ", ".join(there[:16]) or "none"
            raise TeacherNameError(
                "student_unusable",
                f"{name}: expected a folder of that name among the students, found {found}; there are: {listing}",
            )
        links = sorted(entry.name for entry in path.iterdir() if entry.is_symlink())
        if links:
            raise TeacherNameError(
                "student_unusable",
                f"{name}: {links[0]} is a symbolic link; a student's files are its own: copy what it points to",
            )
        return ModelSource(folder=path, name=name)

    def open(self, name: str) -> ModelFolder:
        """The student's folder as a model. Raises TeacherNameError where it is none, or not a whole one."""
        try:
            return ModelFolder.open(self.source(name))
        except ModelError as error:
            raise TeacherNameError("student_unusable", f"{name}: {error}") from error

    def stamp(self, name: str) -> str:
        """What tells at a glance that files may have changed: names, sizes and times. Raises TeacherNameError."""
        return file_stamp(self._files(name))

    def digest(self, name: str) -> str:
        """SHA-256 (hex) over every file's name and bytes: what an engine would load. Raises TeacherNameError."""
        return files_digest(self._files(name))

    def _files(self, name: str) -> list[Path]:
        return sorted(file for file in self.source(name).folder.iterdir() if file.is_file())
