"""Wall and CPU seconds of processes and of what they start, with the loading of a service's teacher counted apart."""

import time
from dataclasses import dataclass
from typing import Any

import psutil

from logitcask_services.cli.serve import load_teacher, require_teacher
from logitcask_services.jobs.loaded_teacher import Role, Teacher
from logitcask_services.settings import ServiceSettings


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall and CPU seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.wall - other.wall, self.cpu - other.cpu)

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall + other.wall, self.cpu + other.cpu)


def now() -> Spent:
    """The clock, and the CPU seconds of this process and all below it, those that have ended included."""
    cpu, this = 0.0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            cpu += sum(process.cpu_times()[:4])  # its own and those of children that were waited for
        except psutil.NoSuchProcess:
            continue  # ended since it was listed; its parent has its seconds
    return Spent(time.perf_counter(), cpu)


class SwitchClock:
    """Loads the teacher in a role, and adds up what loading and closing take."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings, self._source = settings, require_teacher(settings)
        self.spent = Spent()

    def load(self, role: Role) -> Teacher:
        """As `logitcask serve` loads it."""
        began = now()
        teacher = load_teacher(self._settings, self._source, role)
        self.spent += now() - began
        for part in teacher.parts.values():
            self._time_close(part)
        return teacher

    def _time_close(self, part: Any) -> None:
        close = part.close

        def timed() -> None:
            began = now()
            close()
            self.spent += now() - began

        part.close = timed
