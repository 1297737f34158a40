"""The teacher that is loaded, or being loaded, as threads beside the worker's see it and may interrupt it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from logitcask_services.engines.process.fleet import EngineState
from logitcask_services.engines.process.loads import interrupt_loading, stillness_of_loading

if TYPE_CHECKING:
    from logitcask_services.jobs.loaded_teacher import Teacher


class TeacherInMemory:
    """At most one teacher. The worker's thread sets what is here and calls `release`; the rest is for all."""

    def __init__(self) -> None:
        self.teacher: Teacher | None = None
        self.loader: int | None = None
        """The thread that loads a teacher, while it does."""
        self.interrupted: str | None = None
        """Why the engine was killed, where it was."""

    @property
    def is_loaded(self) -> bool:
        """Whether a teacher is in memory."""
        return self.teacher is not None

    def release(self) -> None:
        """Free it, where there is one."""
        teacher, self.teacher = self.teacher, None
        if teacher is not None:
            teacher.close()

    def interrupt(self, reason: str, silent_seconds: float = 0.0) -> bool:
        """From another thread: kill the engine's processes, so that a call that waits for them raises, or a load.

        Args:
            reason: What to say of its death.
            silent_seconds: See `Teacher.interrupt`.

        Returns:
            False where the engine runs in this process and cannot be interrupted.
        """
        teacher, loader = self.teacher, self.loader
        self.interrupted = reason
        if loader is not None:
            return interrupt_loading(loader)
        return teacher is not None and teacher.interrupt(silent_seconds)

    @property
    def has_ended(self) -> bool:
        """Whether a process of the loaded teacher has ended, which `ensure` finds out."""
        teacher = self.teacher
        return teacher is not None and teacher.ended is not None

    @property
    def stillness(self) -> float:
        """Seconds since a process of the teacher, or one that loads it, last said anything; 0 where there is none."""
        teacher, loader = self.teacher, self.loader
        if loader is not None:
            return stillness_of_loading(loader)
        return 0.0 if teacher is None else teacher.stillness

    @property
    def engine_states(self) -> list[EngineState]:
        """Of the engines of a loaded teacher that has many; empty of any other."""
        teacher = self.teacher
        return [] if teacher is None or teacher.team is None else teacher.team.states

    @property
    def is_loading(self) -> bool:
        """Whether a thread waits for it to be loaded."""
        return self.loader is not None

    @property
    def step_silence(self) -> float | None:
        """Seconds since the teacher was last known to go on, by its steps; None where they cannot be seen."""
        teacher = self.teacher
        return None if teacher is None else teacher.step_silence

    def metrics(self) -> Iterator[Metric]:
        """What the loaded teacher's engines keep of themselves; nothing while none is loaded."""
        teacher = self.teacher
        return iter(()) if teacher is None else teacher.metrics()
