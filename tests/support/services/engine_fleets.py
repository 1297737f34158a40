"""Teachers with many fake engines, in this process or in processes of their own."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from logitcask_services.engines.process.fleet import EngineFleet, OwnEngine
from logitcask_services.jobs.executors.local_pool import LocalTeam
from logitcask_services.jobs.loaded_teacher import Teacher
from tests.support.services.fake_teacher import FakeEngine, FakeTokenizer
from tests.support.services.process_engines import fake_engine


@dataclass
class SteppingEngine(FakeEngine):
    """A fake engine that looks as if it were in a process of its own, which is well until something is scripted."""

    stillness: float = 0.0
    step_silence: float = 0.0
    death: str | None = None
    """How its process ended."""

    @property
    def ended(self) -> str | None:
        return self.death

    def interrupt(self) -> bool:
        self.death = self.death or "interrupted, as scripted"
        return super().interrupt()


@dataclass
class EngineScript:
    """Loads engines one after the other, each with what the script says, and keeps them."""

    script: Callable[[int], dict[str, Any]] = lambda number: {}
    """What to script into the engine that is loaded as this one, counted from 0."""
    loaded: list[SteppingEngine] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Of the fleet, of each that was loaded."""

    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, place: int) -> SteppingEngine:
        with self.lock:
            engine = SteppingEngine(**self.script(len(self.loaded)))
            self.loaded.append(engine)
            self.places.append(place)
        return engine


def fleet_teacher(load: Callable[[int], OwnEngine], size: int) -> Teacher:
    """A teacher whose engines are loaded, and capture together."""
    fleet = EngineFleet(load, size).load()
    return Teacher(engine=fleet, tokenizer=FakeTokenizer(), team=LocalTeam(fleet))


def process_fleet(size: int, **child: Any) -> Teacher:
    """The same of engines in processes of their own, which are what `fake_engine` says."""
    return fleet_teacher(lambda place: fake_engine(**child), size)
