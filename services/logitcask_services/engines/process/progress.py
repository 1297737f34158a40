"""Proof that an engine goes on: steps are counted where they are made, and told to whoever watches.

An engine that takes one long step after the other shows no results for a long time and is well; one whose step does not
come back is not. Results alone do not tell them apart, a count of steps and the age of the last one do.
"""

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Stepping(Protocol):
    """An engine, or a generator, that calls `on_step` after each of its steps."""

    on_step: Callable[[], None]


@runtime_checkable
class ShowsSteps(Protocol):
    """An engine, or a generator, whose steps can be seen while another thread waits for its results."""

    @property
    def step_silence(self) -> float:
        """Seconds since it was last known to go on: it made a step, or had nothing to do."""
        ...


@runtime_checkable
class OwnProcess(Protocol):
    """An engine, or a generator, in a process of its own, which may stand still or end at any moment."""

    @property
    def stillness(self) -> float:
        """Seconds since the process last said anything; one that is well says something each second."""
        ...

    @property
    def ended(self) -> str | None:
        """How the process ended; None while it runs."""
        ...


@runtime_checkable
class SeveralProcesses(Protocol):
    """Engines in processes of their own, of which some may end while others go on."""

    def drop_ended(self) -> bool:
        """Let go of those that have ended; whether any is left."""
        ...

    def interrupt_silent(self, seconds: float) -> bool:
        """Kill those that made no step for so long, at least the one that is silent the longest. True."""
        ...


class StepProgress:
    """In the engine's process. One thread steps, another one reads."""

    def __init__(self) -> None:
        self.steps = 0
        self._since: float | None = None

    def step(self) -> None:
        """Something went on: the engine drew a task, made a step, or gave a result."""
        self.steps += 1
        self._since = time.monotonic()

    def rest(self) -> None:
        """The engine has nothing to do."""
        self._since = None

    @property
    def age(self) -> float:
        """Seconds since the last step; 0 while there is nothing to do."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


class SeenProgress:
    """In the service's process: what the last beat said. One thread hears, any reads."""

    def __init__(self) -> None:
        self._moment = time.monotonic()
        self._heard: float | None = None

    def hear(self, age: float = 0.0) -> None:
        """A beat, or a result, came: the last step was so many seconds ago."""
        self._heard = now = time.monotonic()
        self._moment = max(self._moment, now - age)

    @property
    def stillness(self) -> float:
        """Seconds since anything came; 0 before the first word, as a new process has much to import."""
        heard = self._heard
        return 0.0 if heard is None else time.monotonic() - heard

    @property
    def silence(self) -> float:
        """Seconds since the last step, as far as is known: beats that do not come count as silence."""
        return time.monotonic() - self._moment
