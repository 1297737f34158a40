"""A roster of fake teachers in processes of their own, which can be held and met while they load."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logitcask_schemas.errors import ModelError
from logitcask_services.jobs.loaded_teacher import Role, Teacher
from tests.support.services.fake_teacher import FakeTokenizer
from tests.support.services.process_engines import fake_engine, fake_writer
from tests.support.services.rosters import WINDOW, FakeRoster
from tests.support.services.service_harness import wait_for


@dataclass
class ProcessRoster(FakeRoster):
    """See the module's docstring. What a load is for: `capture`, `generate`, or `hints`."""

    folder: Path = Path()
    """For the files that hold loads."""
    held: set[str] = field(default_factory=set)
    """What loads are for that wait until they are let go."""
    load_faults: dict[str, list[str]] = field(default_factory=dict)
    """What the next loads of a name meet, see `process_engines.meet`."""
    script: dict[str, Any] = field(default_factory=dict)
    """Of each engine."""
    writer: dict[str, Any] = field(default_factory=dict)
    """Of each generator."""
    pids: list[int] = field(default_factory=list)
    """Of all that were loaded."""

    def hold(self, what: str) -> None:
        """The next loads for this wait."""
        (self.folder / what).touch()
        self.held.add(what)

    def held_process(self, what: str) -> int:
        """The process that waits, once there is one; loads after it are not held."""
        pid = self.folder / f"{what}.pid"
        wait_for(lambda: pid.exists() and pid.read_text())
        self.held.remove(what)
        return int(pid.read_text())

    def load(self, name: str, role: Role, hints: Any) -> Teacher:
        self.loads.append((name, role))
        if name in self.faults:
            raise ModelError(self.faults[name])
        what = role if hints is None else "hints"
        faults = self.load_faults.get(name, [])
        document = {
            "identity": self.identity(name).model_dump(mode="json"),
            "max_model_len": WINDOW,
            "hold": str(self.folder / what) if what in self.held else None,
            "fault": faults.pop(0) if faults else None,
        }
        if role == "generate":
            generator = fake_writer("load_part", writes=True, **document, **self.writer)
            self.pids.append(generator.pid)
            return Teacher(tokenizer=FakeTokenizer(), generator=generator)
        given = None if hints is None else hints.model_dump(mode="json")
        engine = fake_engine("load_part", writes=False, hints=given, **document, **self.script)
        self.pids.append(engine.pid)
        return Teacher(tokenizer=FakeTokenizer(), engine=engine)
