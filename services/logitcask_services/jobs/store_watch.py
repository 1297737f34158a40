"""The thread that asks the store of the casks, now and then, whether it would take a shard: readiness then knows.

Asking takes long when nobody answers, so whoever wants to know whether the service is ready does not ask.
"""

import logging
import threading
from typing import Final

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.waiting import Reason, passing_fault, unforeseen

logger = logging.getLogger(__name__)
SECONDS: Final = 30.0
"""Between two questions, each of two requests."""


class StoreWatch(threading.Thread):
    """Asks until the service stops; ends at once where casks lie in a folder, of which the disk can be asked any time.

    Args:
        context: Whose casks they are.
        seconds: Between two questions.
    """

    def __init__(self, context: JobContext, seconds: float = SECONDS) -> None:
        super().__init__(name="logitcask-store-watch", daemon=True)
        self._casks = context.folders.casks
        self._stopping = context.signals.stopping
        self._seconds = seconds
        self.fault: Reason | None = None
        """Code and sentence while the store takes nothing; None otherwise."""

    def run(self) -> None:
        """See the class. It was asked when the service was made."""
        if self._casks.disks:
            return
        while not self._stopping.wait(self._seconds):
            self.ask()

    def ask(self) -> None:
        """Ask once."""
        try:
            self._casks.require_usable()
        except (LogitcaskError, OSError) as error:
            fault = passing_fault(error) or unforeseen(error)
            if self.fault is None:
                logger.warning("%s", fault[1])
            self.fault = fault
        else:
            if self.fault is not None:
                logger.info("%s takes casks again", self._casks.place)
            self.fault = None
