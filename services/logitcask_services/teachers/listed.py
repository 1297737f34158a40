"""The roster of what an operator lists: teachers of a file, or the one of the command line, and students."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from logitcask_schemas.errors import CaptureSpecError, ModelError
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.engine import RoleError
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.jobs.loaded_teacher import OTHER_ROLE, Role, Teacher, TeacherFacts
from logitcask_services.jobs.teacher_names import STUDENTS, TeacherNameError, is_student, require_listed
from logitcask_services.teachers.entry import TeacherEntry
from logitcask_services.teachers.outline import file_stamp, outline
from logitcask_services.teachers.students import StudentFolders

if TYPE_CHECKING:
    from logitcask_schemas.record.identity import TeacherIdentity

Loader = Callable[[TeacherEntry, ModelSource, Role, HintSpec | None], Teacher]
"""Loads what an entry says, from where it lies."""


class ListedTeachers:
    """A `Roster`.

    Args:
        teachers: each with where it lies on this machine; the first is the default.
        load: loads one.
        students: where they are; None: there are none.
        student_entry: how students are loaded.

    Raises:
        ModelError: one of several teachers has a configuration that does not say how large its vocabulary is, so that
            nothing could be made for it before it is loaded.
    """

    settles_hints = True

    def __init__(
        self,
        teachers: Sequence[tuple[TeacherEntry, ModelSource]],
        load: Loader,
        students: StudentFolders | None = None,
        student_entry: TeacherEntry | None = None,
    ) -> None:
        self._entries: Mapping[str, tuple[TeacherEntry, ModelSource]] = {
            entry.name: (entry, at) for entry, at in teachers
        }
        self.names = tuple(self._entries)
        self._load = load
        self._students = students
        self._student_entry = student_entry or TeacherEntry(name=STUDENTS.rstrip("/"), model="")
        self._lock = threading.Lock()
        self._outlines: dict[str, TeacherFacts | None] = {}
        self._identities: dict[str, TeacherIdentity] = {}
        """As the teachers were loaded first; a service goes on with these alone."""
        self._stamps: dict[str, str] = {}
        """Of the files that a teacher was last loaded from."""
        self._roles: dict[str, set[Role]] = {}
        """For which these were loaded."""
        self._strangers: dict[str, tuple[str, str]] = {}
        """Stamp of the files that were another teacher's, and what was wrong."""
        if len(self.names) > 1:
            for name in self.names:
                if self.facts(name) is None:
                    raise ModelError(
                        f"{name}: the config.json in {self._entries[name][1].folder} has no `vocab_size`; a service of "
                        "several teachers needs it before the teacher is loaded. Add it, or serve this teacher alone"
                    )

    @property
    def has_students(self) -> bool:
        """See `Roster`."""
        return self._students is not None

    def require(self, name: str, role: Role) -> None:
        """See `Roster`."""
        require_listed(name, self.names, has_students=self.has_students)
        if not is_student(name):
            return
        if role == "capture":
            raise TeacherNameError(
                "students_refused", f"{name}: students write, and are not captured; teachers: {', '.join(self.names)}"
            )
        self._student_folders().open(name)

    def engine(self, name: str) -> str:
        """See `Roster`."""
        return self._entries[name][0].engine

    def facts(self, name: str) -> TeacherFacts | None:
        """See `Roster`."""
        require_listed(name, self.names, has_students=self.has_students)
        stamp = self._student_folders().stamp(name) if is_student(name) else ""
        with self._lock:  # a tokenizer takes a while to load: once is enough
            known = self._outlines.get(name)
            if name not in self._outlines or (known is not None and known.stamp != stamp):
                self._outlines[name] = self._outline(name, stamp)
            return self._outlines[name]

    def version(self, name: str) -> str:
        """See `Roster`. Teachers do not change while a service runs; of students every byte is looked at."""
        return self._student_folders().digest(name) if is_student(name) else ""

    def load(self, name: str, role: Role, hints: HintSpec | None) -> Teacher:
        """See `Roster`. One that was loaded before is loaded again as it was, or not at all.

        Raises:
            RoleError: The same files were loaded for the other role, and do not load for this one.
        """
        if is_student(name):
            if role != "generate":
                raise CaptureSpecError(f"{name}: students write, and are not captured")
            return self._load(self._student_entry, self._student_folders().source(name), "generate", None)
        entry, source = self._entries[name]
        if entry.engine == "openai":
            return self._load(entry, source, role, hints)
        stamp = file_stamp(sorted(file for file in ModelFolder.open(source).path.iterdir() if file.is_file()))
        if (known := self._strangers.get(name)) is not None and known[0] == stamp:
            raise ModelError(known[1])  # its weights were looked at already
        try:
            teacher = self._load(entry, source, role, hints)
        except ModelError as error:
            if hints is not None or self._stamps.get(name) != stamp or role in self._roles[name]:
                raise  # the hints may be at fault, or the files are
            raise RoleError(f"{error} (it could be loaded to {OTHER_ROLE[role]})") from error
        first = self._identities.setdefault(name, teacher.identity)
        if changes := first.explain(teacher.identity):
            teacher.close()
            text = (
                f"what lies in {source.folder} is another teacher than {name} was when this service first loaded it "
                f"({changes}); put it back, or start the service anew, which then serves what lies there"
            )
            self._strangers[name] = (stamp, text)
            raise ModelError(text)
        self._stamps[name] = stamp
        self._roles.setdefault(name, set()).update(teacher.parts)
        return teacher

    def _outline(self, name: str, stamp: str) -> TeacherFacts | None:
        if is_student(name):
            facts = outline(self._student_folders().open(name), self._student_entry.max_model_len, stamp=stamp)
            if facts is None:
                raise TeacherNameError("student_unusable", f"{name}: its config.json has no `vocab_size`")
            return facts
        entry, source = self._entries[name]
        if entry.engine == "openai":
            return None  # who is served elsewhere is asked there
        return outline(ModelFolder.open(source), entry.max_model_len)

    def _student_folders(self) -> StudentFolders:
        assert self._students is not None  # require_listed said so
        return self._students
