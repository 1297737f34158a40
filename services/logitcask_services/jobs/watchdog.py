"""Notices a teacher that no longer answers: a step or a load that does not come back.

An engine in a process of its own is killed, so that the call that waits for it raises and the teacher is loaded again;
so is one that stands still while nobody waits for it. One that computes in this process cannot be interrupted: the
death is noted in the database and the process ends, for whoever watches over it to start it anew. When the service
stops, the watchdog sees to it that the teacher does, too.
"""

import logging
import os
import threading
import time
from typing import Final, Protocol

from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from logitcask_services.jobs.context import TEACHER_FAILED, JobContext

logger = logging.getLogger(__name__)
HANG_SECONDS: Final = 300.0
"""Without a step, where steps can be seen (an engine in a process of its own): none takes minutes."""
BLIND_HANG_SECONDS: Final = 1800.0
"""Without a result, where results are all that can be seen: a long text may take long."""
LATE_SECONDS: Final = 2.0
"""By which a look that comes later than it should says that this process did not run."""
KILLED_SECONDS: Final = 10.0
"""In which whoever waited for processes that were killed hears of it, also on a machine that has no time."""
STEP_SECONDS: Final = 2.0
"""In which a step may come back when the service stops."""


class CurrentRun(Protocol):
    """What the watchdog must know of the run that waits for the teacher."""

    @property
    def job_id(self) -> str:
        """Whose run it is."""
        ...

    def note_hang(self, reason: str) -> None:
        """Write down, from another thread, that the teacher hangs: the process is about to end."""
        ...

    def note_cancelled(self) -> None:
        """Write down, from another thread, that the cancelled job has ended: the teacher is not waited for."""
        ...


class Watchdog(threading.Thread):
    """Looks at the heartbeat; a limit of 0 seconds is none."""

    def __init__(self, context: JobContext) -> None:
        super().__init__(name="logitcask-watchdog", daemon=True)
        self._context = context
        self._hang = context.settings.engine_hang_seconds
        self._cancel = context.settings.cancel_grace_seconds
        self._load = context.settings.load_deadline_seconds
        self.run_now: CurrentRun | None = None
        """Set by the worker while a run is under way."""

    def run(self) -> None:
        """Watch until the service stops."""
        context = self._context
        interrupted_at = -1  # number of deaths before the last interruption: it is no use twice for one hang
        hang = HANG_SECONDS if self._hang is None else self._hang
        limits = [limit for limit in (hang, self._cancel, self._load) if limit]
        looked = time.monotonic()
        pause = min(1.0, min(limits, default=1.0) / 4)
        while not context.signals.stopping.wait(pause):
            looked, last_look = time.monotonic(), looked
            if looked - last_look > pause + LATE_SECONDS:
                # This process itself stood still (Ctrl-Z, a paused machine): nobody's silence says anything yet.
                context.heartbeat.beat()
                context.teacher.load_heartbeat.beat()
                continue
            if context.teacher.load_heartbeat.silence > self._load > 0:
                reason = f"the teacher did not load within {self._load:g} s"
                if not context.teacher.in_memory.interrupt(reason):
                    self._end(reason)
                logger.error("%s; its processes were killed", reason)
                context.teacher.load_heartbeat.beat()
            silence = context.heartbeat.silence
            if silence > self._cancel > 0:
                self._let_go_of_cancelled()
            steps = context.teacher.in_memory.step_silence
            if self._hang is None:
                hang = BLIND_HANG_SECONDS if steps is None else HANG_SECONDS
            if not context.heartbeat.is_expected:
                self._look_after_idle(HANG_SECONDS if self._hang is None else self._hang)
                continue
            if steps is not None:
                silence = min(silence, steps)  # results may be far apart while one step follows the other
            deaths = context.teacher.deaths
            was_killed = deaths == interrupted_at
            if not silence > hang > 0 or (was_killed and silence < KILLED_SECONDS):
                continue
            reason = f"the teacher has shown no life for {silence:.0f} s"
            if not was_killed and context.teacher.in_memory.interrupt(reason, hang):
                logger.error("%s; its processes were killed", reason)
                interrupted_at = deaths
                context.heartbeat.beat()
            else:
                self._note_hang(reason)
                self._end(reason)
        context.signals.stopping.wait()
        self._stop_teacher()

    def _stop_teacher(self) -> None:
        """The service stops: a load is ended at once, a step has a moment to come back; what it made counts then."""
        teacher, until = self._context.teacher, time.monotonic() + STEP_SECONDS
        while not teacher.closed.wait(0.05):
            if teacher.in_memory.is_loading or time.monotonic() > until:
                teacher.in_memory.interrupt("the service stops")

    def _look_after_idle(self, hang: float) -> None:
        """A process that nobody waits for, or that loads, says something each second; the worker hears of its end."""
        teacher = self._context.teacher
        if teacher.in_memory.has_ended:
            self._context.signals.changed("")
        elif teacher.in_memory.stillness > hang > 0:
            reason = f"the teacher's process has stood still for {teacher.in_memory.stillness:.0f} s"
            if teacher.in_memory.interrupt(reason, hang):
                logger.error("%s; it was killed", reason)

    def _let_go_of_cancelled(self) -> None:
        """A slow teacher is no dead one: the job ends, what the teacher still makes of it is left out."""
        run = self.run_now
        if run is None or not self._context.signals.is_cancelled(run.job_id):
            return
        try:
            run.note_cancelled()
        except (OperationalError, PoolTimeoutError) as error:
            logger.warning("the end of %s could not be noted yet: %s", run.job_id, error)

    def _note_hang(self, reason: str) -> None:
        if (run := self.run_now) is None:
            return
        try:
            run.note_hang(reason)
        except Exception:  # the process must end all the same; without the note the death is not counted
            logger.exception("the death of the teacher could not be noted")

    def _end(self, reason: str) -> None:
        logger.critical("%s; the process ends (exit code %d) so that a new one can go on", reason, TEACHER_FAILED)
        logging.shutdown()
        os._exit(TEACHER_FAILED)
