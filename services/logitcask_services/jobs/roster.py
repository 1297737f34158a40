"""Who may be loaded, by name: what the operator lists, and students, which write and are never captured."""

from collections.abc import Callable, Sequence
from typing import Protocol

from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.jobs.loaded_teacher import LoadHinted, Role, Teacher, TeacherFacts
from logitcask_services.jobs.teacher_names import require_listed


class Roster(Protocol):
    """Names, and what is known of them. For all threads; `load` and `version` belong to the worker's."""

    @property
    def names(self) -> Sequence[str]:
        """The operator's teachers; the first is meant where a request names none."""
        ...

    @property
    def has_students(self) -> bool:
        """Whether `students/NAME` can be asked for."""
        ...

    def require(self, name: str, role: Role) -> None:
        """Raise TeacherNameError where a name cannot be asked for in this role."""
        ...

    def engine(self, name: str) -> str:
        """Which engine loads one of `names`."""
        ...

    def facts(self, name: str) -> TeacherFacts | None:
        """What its folder says without its weights; None: nothing is known before it is loaded.

        Raises ModelError where the folder is no model (any more), TeacherNameError where nobody has the name.
        """
        ...

    def version(self, name: str) -> str:
        """Changes whenever what would be loaded does. Raises as `facts`."""
        ...

    def load(self, name: str, role: Role, hints: HintSpec | None) -> Teacher:
        """Load it for a role. Raises ModelError, CaptureSpecError (its hints), or whatever its engine raises."""
        ...

    @property
    def settles_hints(self) -> bool:
        """Whether layers of hints are settled when an engine is loaded, so that others need it loaded anew."""
        ...


class OneTeacher:
    """The roster of a service with one teacher, which a function loads."""

    has_students = False

    def __init__(
        self, load: Callable[[Role], Teacher], load_hinted: LoadHinted | None = None, *, name: str, engine: str
    ) -> None:
        self.names = (name,)
        self._load = load
        self._load_hinted = load_hinted
        self._engine = engine

    @property
    def settles_hints(self) -> bool:
        """See `Roster`."""
        return self._load_hinted is not None

    def require(self, name: str, role: Role) -> None:
        """See `Roster`."""
        require_listed(name, self.names, has_students=False)

    def engine(self, name: str) -> str:
        """See `Roster`."""
        return self._engine

    def facts(self, name: str) -> None:
        """Nothing is known before it is loaded."""
        require_listed(name, self.names, has_students=False)

    def version(self, name: str) -> str:
        """It never changes."""
        return ""

    def load(self, name: str, role: Role, hints: HintSpec | None) -> Teacher:
        """See `Roster`."""
        if hints is not None and self._load_hinted is not None:
            return self._load_hinted(hints)
        return self._load(role)
