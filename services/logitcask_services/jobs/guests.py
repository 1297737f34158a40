"""Others whom the teacher serves beside a job: between the chunks of a generation, or while other machines capture."""

import logging
import threading
import time
from typing import Final, Protocol

from logitcask_services.engines.engine import Engine
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.setbacks import TeacherDiedError

logger = logging.getLogger(__name__)
SERVED_SECONDS: Final = 5.0
"""After which no further call is begun, and the generation goes on."""
_LOOK_SECONDS: Final = 5.0
"""After which whoever hosts looks for callers, even where nothing has changed."""


class Guests(Protocol):
    """Others whom the teacher can serve while a generation is under way."""

    def wait(self) -> bool:
        """Whether anybody waits."""
        ...

    def serve(self) -> None:
        """Serve them, for a bounded time. Raises TeacherDiedError where the teacher cannot go on."""
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
        try:
            self._context.scoring.alone(self._engine, ends=lambda: stopping.is_set() or time.monotonic() > until)
        except TeacherDiedError as error:
            if not self._context.teacher.outlives(error):
                raise


class Hosting(threading.Thread):
    """Scores by an engine that a job on other machines leaves idle, from `start` to `stop`, or until the engine dies.

    Only this thread uses the engine then. Where engines of this machine capture, callers are let in among their
    documents instead, see `Scoring.among`.

    Args:
        context: of the service.
        engine: loaded, and of the teacher whose line moves.
    """

    def __init__(self, context: JobContext, engine: Engine) -> None:
        super().__init__(name="logitcask-hosting", daemon=True)
        self._context = context
        self._engine = engine
        self._over = threading.Event()
        self.death: TeacherDiedError | None = None
        """What the engine raised, where it died; the worker's thread says so to whoever loads it again."""

    def run(self) -> None:
        """See the class."""
        signals, scoring = self._context.signals, self._context.scoring
        try:
            while not self._ends():
                seen = signals.changes
                if not scoring.alone(self._engine, self._ends):
                    signals.wait(seen, _LOOK_SECONDS)
        except TeacherDiedError as error:
            logger.warning("the engine beside the job died; who scores waits for the job's end: %s", error)
            self.death = error

    def stop(self) -> None:
        """End it, and wait for what is with the engine; one that hangs is the watchdog's. Idempotent."""
        self._over.set()
        self._context.signals.changed("")
        if self.ident is not None:
            self.join()

    def _ends(self) -> bool:
        return self._over.is_set() or self._context.signals.stopping.is_set()
