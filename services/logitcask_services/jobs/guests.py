"""Others whom the teacher serves between the chunks of a generation."""

import time
from typing import Final, Protocol

from logitcask_services.engines.engine import Engine
from logitcask_services.jobs.context import JobContext

SERVED_SECONDS: Final = 5.0
"""After which no further call is begun, and the generation goes on."""


class Guests(Protocol):
    """Others whom the teacher can serve while a generation is under way."""

    def wait(self) -> bool:
        """Whether anybody waits."""
        ...

    def serve(self) -> None:
        """Serve them, for a bounded time. Raises TeacherDiedError."""
        ...


class ScoringGuests:
    """Callers of scoring now, let in between the chunks of a generation where the teacher can do both."""

    def __init__(self, context: JobContext, engine: Engine) -> None:
        self._context = context
        self._engine = engine

    def wait(self) -> bool:
        """See `Guests`."""
        return self._context.scoring.is_waited_for

    def serve(self) -> None:
        """See `Guests`."""
        until, stopping = time.monotonic() + SERVED_SECONDS, self._context.signals.stopping
        self._context.scoring.alone(self._engine, ends=lambda: stopping.is_set() or time.monotonic() > until)
