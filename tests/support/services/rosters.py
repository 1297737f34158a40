"""A roster of fake teachers: who was loaded, for what, in which order."""

from dataclasses import dataclass, field, replace
from typing import Any

from logitcask_schemas.errors import ModelError
from logitcask_services.engines.engine import RoleError
from logitcask_services.jobs.loaded_teacher import Role, Teacher, TeacherFacts
from logitcask_services.jobs.teacher_names import is_student, require_listed
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import FakeEngine, FakeTokenizer, identity

WINDOW = 512


@dataclass
class FakeRoster:
    """A `Roster` whose teachers differ by their weights alone, unless `changes` says more."""

    names: tuple[str, ...] = ("small", "large")
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the identity, by name."""
    faults: dict[str, str] = field(default_factory=dict)
    """Why a name cannot be loaded."""
    lacks: dict[str, Role] = field(default_factory=dict)
    """What a name cannot be loaded for."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of students: what their files are now."""
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What to script into an engine."""
    has_students: bool = True
    settles_hints: bool = True
    loads: list[tuple[str, Role]] = field(default_factory=list)
    loaded: list[Teacher] = field(default_factory=list)

    def require(self, name: str, role: Role) -> None:
        require_listed(name, self.names, has_students=self.has_students)

    def engine(self, name: str) -> str:
        return "fake"

    def identity(self, name: str) -> Any:
        weights = (name + self.version(name)).encode().hex().ljust(64, "0")[:64]
        return identity(**{"model": name, "weights_digest": weights, **self.changes.get(name, {})})

    def facts(self, name: str) -> TeacherFacts:
        require_listed(name, self.names, has_students=self.has_students)
        known = TeacherFacts.of(
            Teacher(engine=FakeEngine(identity=self.identity(name), max_model_len=WINDOW), tokenizer=FakeTokenizer()),
            stamp=self.version(name),
        )
        return replace(known, identity=None)

    def version(self, name: str) -> str:
        return self.versions.get(name, "") if is_student(name) else ""

    def load(self, name: str, role: Role, hints: Any) -> Teacher:
        self.loads.append((name, role))
        if name in self.faults:
            raise ModelError(self.faults[name])
        if self.lacks.get(name) == role:
            raise RoleError(f"{name} is not made for that")
        who = self.identity(name)
        if role == "generate":
            teacher = Teacher(tokenizer=FakeTokenizer(), generator=FakeGenerator(identity=who, max_model_len=WINDOW))
        else:
            engine = FakeEngine(identity=who, max_model_len=WINDOW, **self.engines.get(name, {}))
            teacher = Teacher(tokenizer=FakeTokenizer(), engine=engine)
        self.loaded.append(teacher)
        return teacher
